"""Reads the shape of a model from the files in its folder: config.json, and the headers of its weights."""

from __future__ import annotations

import json
from pathlib import Path

from tunewright.plan.shape import ModelShape, shape_of
from tunewright.registry.safetensors_file import read_shapes


def read_shape(folder: Path) -> ModelShape:
    """The shape of the model in a folder, however large it is. Raises OSError, ValueError, BadTensors, UnknownShape."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError("config.json is not a JSON object")
    return shape_of(config, read_shapes(folder))


def quantization_of(folder: Path) -> str | None:
    """The method by which the weights of the model in a folder are quantized, as its config.json names it; None where
    they are not. Raises OSError and ValueError."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    how = config.get("quantization_config") if isinstance(config, dict) else None
    if not how:
        return None
    return str(how.get("quant_method") or "unknown") if isinstance(how, dict) else "unknown"
