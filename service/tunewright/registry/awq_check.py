"""Checks whether AWQ can quantize a model, from its config and the shapes in the headers of its files.

Imports neither torch nor a quantization library, since the API uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from tunewright.errors import InvalidRequest
from tunewright.registry.base_tensors import EXPERTS

GROUP_SIZES = (128, 64, 32)
"""The group sizes of vLLM's Marlin kernels (MARLIN_SUPPORTED_GROUP_SIZES, beside one group per channel)."""
AWQ_MODEL_TYPES = (
    "cohere", "gemma", "gemma2", "llama", "mistral", "opt", "phi3", "qwen2", "qwen3", "stablelm",
)  # fmt: skip
"""The `model_type`s that AutoAWQ 0.2.9 supports, transformers 5 has, and vLLM serves.

Of those that AutoAWQ supports, these are left out: multimodal models and mixtures of experts; models with code of their
own (Yi, Baichuan, InternLM2 and others); and bloom, falcon, gptj, gpt_bigcode, gpt_neox, mpt and starcoder2, in which
AutoAWQ divides the output of an activation function by scales that vLLM no longer reads.
"""
_SETTINGS = {("stablelm", "use_parallel_residual", True), ("opt", "do_layer_norm_before", False)}
"""(model_type, key, value): settings with which the norms of a layer are elsewhere than AutoAWQ expects."""
_OUT = 64
"""A module must have a multiple of this many outputs.

AutoAWQ searches clipping in blocks of 64 outputs and packs 32 at once (quantizer.py, gemm.py); vLLM's CPU kernel needs
multiples of 32 (mixed_precision/cpu.py), the format itself multiples of 8.
"""
_IN = 32
"""A module must have a multiple of this many inputs, for vLLM's CPU kernel. Every group size is a multiple of it."""


def check_awq(
    folder_config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    group_size: int | Literal["largest"],
) -> int:
    """The group size to quantize with: `group_size`, or the largest that fits every module to quantize.

    `folder_config` is the model's config.json, `shapes` the shapes of all tensors in its files ([out, in] for a linear
    module's weight; see `read_shapes`). Raises InvalidRequest (code export_unsupported) that names what does not fit.
    """
    _check_architecture(folder_config)
    modules = quantized_modules(shapes)
    if not modules:
        raise _unsupported(
            "the model's files have no linear modules in numbered layers: there is nothing to quantize"
        )
    for name, (rows, _) in modules.items():
        if rows % _OUT:
            raise _unsupported(
                f"{name} has {rows} outputs, which {_OUT} does not divide: AWQ's packed format and the kernels for it "
                "need that"
            )
    if group_size == "largest":
        for size in GROUP_SIZES:
            if all(columns % size == 0 for _, columns in modules.values()):
                return size
        name, columns = next((n, c) for n, (_, c) in modules.items() if c % _IN)
        raise _unsupported(
            f"{name} has {columns} inputs, which no group size ({_listed(GROUP_SIZES)}) divides"
        )
    if group_size not in GROUP_SIZES:
        raise InvalidRequest(
            f'group_size must be one of {_listed(GROUP_SIZES)}, or "largest"; got {group_size}',
            param="group_size",
        )
    for name, (_, columns) in modules.items():
        if columns % group_size:
            fitting = [size for size in GROUP_SIZES if columns % size == 0]
            advice = f"; {_listed(fitting)} would" if fitting else ""
            raise _unsupported(
                f"{name} has {columns} inputs, which the group size {group_size} does not divide{advice}"
            )
    return group_size


def quantized_modules(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """The shapes [out, in] of the modules that AWQ quantizes: all matrices in the layers, but no embeddings or head."""
    found = {}
    for name, shape in shapes.items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and len(shape) == 2 and any(part.isdecimal() for part in module.split(".")):
            found[module] = (shape[0], shape[1])
    return found


def _check_architecture(config: Mapping[str, Any]) -> None:
    model_type = config.get("model_type")
    if config.get("quantization_config") is not None:
        method = config["quantization_config"].get("quant_method", "unknown")
        raise _unsupported(f"the model is quantized already (by {method}): AWQ needs its 16-bit weights")
    if "text_config" in config or "vision_config" in config:
        raise _unsupported(f"{model_type} is a multimodal model: AWQ is offered for text models only")
    if any(config.get(key) for key in EXPERTS):
        raise _unsupported(f"{model_type} is a mixture of experts: AWQ is offered for dense models only")
    if model_type not in AWQ_MODEL_TYPES:
        raise _unsupported(
            f"AutoAWQ does not know the architecture {model_type} well enough to quantize it; it may be one of "
            f"{_listed(AWQ_MODEL_TYPES)}"
        )
    for known, key, value in _SETTINGS:
        if model_type == known and config.get(key) is value:
            raise _unsupported(f"AutoAWQ does not know the architecture {model_type} with {key} {value}")


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _unsupported(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="export_unsupported")
