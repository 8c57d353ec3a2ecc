"""Adapters for the embedded base, written as bytes without torch or peft."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WIDTHS = {
    "self_attn.q_proj": (256, 256), "self_attn.k_proj": (128, 256), "self_attn.v_proj": (128, 256),
    "self_attn.o_proj": (256, 256), "mlp.gate_proj": (768, 256), "mlp.up_proj": (768, 256),
    "mlp.down_proj": (256, 768),
}  # fmt: skip
"""(out, in) of the linear modules of each of its five layers."""
LAYERS = 5
CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8.0, "lora_dropout": 0.0,
    "target_modules": ["q_proj", "v_proj"], "bias": "none", "use_rslora": False, "use_dora": False,
    "fan_in_fan_out": False, "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
    "layers_to_transform": None, "layers_pattern": None, "init_lora_weights": True,
    "base_model_name_or_path": "tunewright-tiny",
}  # fmt: skip

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]
"""Name -> (dtype, shape, little-endian bytes)."""


def zeros(*shape: int, dtype: str = "F32", value: float = 0.0) -> tuple[str, tuple[int, ...], bytes]:
    """A tensor of one value, which a bfloat16 must hold exactly."""
    count = 1
    for side in shape:
        count *= side
    number = struct.pack("<e", value) if dtype == "F16" else struct.pack("<f", value)
    return dtype, shape, (number[2:] if dtype == "BF16" else number) * count


def lora_tensors(
    modules: Mapping[str, tuple[int, int]] | None = None,
    *,
    rank: int = 4,
    dtype: str = "F32",
    value: float = 0.5,
) -> Tensors:
    """lora_A and lora_B of every module; by default the queries and values of all layers."""
    if modules is None:
        modules = {
            f"model.layers.{layer}.{name}": WIDTHS[name]
            for layer in range(LAYERS)
            for name in ("self_attn.q_proj", "self_attn.v_proj")
        }
    tensors: Tensors = {}
    for module, (outer, inner) in modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = zeros(rank, inner, dtype=dtype, value=value)
        tensors[f"base_model.model.{module}.lora_B.weight"] = zeros(outer, rank, dtype=dtype, value=value)
    return tensors


def safetensors(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], **metadata: str) -> bytes:
    """The file's bytes, with the tensors in the order given."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(content)]}
        at += len(content)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(content for _, _, content in tensors.values())


def adapter_files(
    config: Mapping[str, Any] | None = None, tensors: Tensors | None = None
) -> dict[str, bytes]:
    """A valid adapter, or one with other tensors or with changed fields in its config."""
    return {
        "adapter_config.json": json.dumps({**CONFIG, **(config or {})}).encode(),
        "adapter_model.safetensors": safetensors(lora_tensors() if tensors is None else tensors, format="pt"),
    }


def write_adapter(
    folder: Path, config: Mapping[str, Any] | None = None, tensors: Tensors | None = None
) -> Path:
    folder.mkdir(parents=True)
    for name, content in adapter_files(config, tensors).items():
        (folder / name).write_bytes(content)
    return folder
