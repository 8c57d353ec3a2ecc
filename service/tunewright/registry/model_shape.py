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
