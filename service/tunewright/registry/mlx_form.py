"""The adapters of mlx-lm: `adapters.safetensors` with its own `adapter_config.json`.

Its layer computes W x + scale * (x lora_a) lora_b, with lora_a [in, rank] and lora_b [rank, out]
(https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/tuner/lora.py): peft's matrices, transposed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tunewright.errors import InvalidAdapter
from tunewright.registry.safetensors_file import Tensor, change

_NAME = re.compile(r"(?P<module>.+)\.(?P<part>lora_a|lora_b|m)")
_ENDINGS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")
_FUSE = "fuse it with `mlx_lm.fuse --dequantize`, and serve the result as a base"


def is_mlx(config: dict[str, Any]) -> bool:
    return "peft_type" not in config and ("fine_tune_type" in config or "lora_parameters" in config)


def as_peft(config: dict[str, Any], tensors: Sequence[Tensor]) -> tuple[dict[str, Any], list[Tensor]]:
    """The config and the tensors as peft would have saved them. Raises InvalidAdapter."""
    parameters = config.get("lora_parameters")
    kind = "dora" if config.get("use_dora") else config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise _refused("fine_tune_type", f"{str(kind)[:50]!r}: it is no LoRA adapter", _FUSE)
    if not isinstance(parameters, dict):
        raise _refused(
            "lora_parameters", "no rank and scale", "take the file that mlx-lm wrote beside the weights"
        )
    rank, scale = (_number(parameters, name) for name in ("rank", "scale"))
    if parameters.get("alpha") not in (None, parameters["rank"]):
        raise _refused(
            "lora_parameters.alpha",
            f"{str(parameters['alpha'])[:50]} beside scale {scale:g}: older versions of mlx-lm multiply by scale * "
            "alpha / rank, newer ones by scale alone",
            "write the factor that your version used as `scale`, and leave `alpha` out",
        )
    renamed = [_renamed(tensor) for tensor in tensors]
    modules = {
        name.removesuffix(".lora_A.weight") for name in (t.name for t in renamed) if ".lora_A." in name
    }
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": parameters["rank"],
        "lora_alpha": rank * scale,
        "lora_dropout": parameters.get("dropout"),
        "target_modules": sorted(modules) or None,
        "use_dora": kind == "dora",
        "base_model_name_or_path": config.get("model"),
    }, renamed


def _renamed(tensor: Tensor) -> Tensor:
    found = _NAME.fullmatch(tensor.name)
    if found is None:
        raise InvalidAdapter(
            f"{tensor.name[:200]} is no LoRA weight as mlx-lm names them (lora_a, lora_b): {_FUSE}.",
            code="adapter_unsupported",
        )
    module, part = found["module"], found["part"]
    if module.rpartition(".")[2] in _EMBEDDINGS:
        raise InvalidAdapter(
            f"{tensor.name[:200]} adapts the embeddings, which in MLX changes a tied output head too, and in vLLM and "
            f"peft does not: {_FUSE}, or train one without it.",
            code="adapter_unsupported",
        )
    if len(tensor.shape) != (1 if part == "m" else 2):
        raise InvalidAdapter(
            f"{tensor.name[:200]} has shape {list(tensor.shape)}: adapters on experts are not served; {_FUSE}.",
            code="adapter_unsupported",
        )
    return change(tensor, name=f"{module}.{_ENDINGS[part]}", transpose=part != "m")


def _number(parameters: dict[str, Any], name: str) -> float:
    value: Any = parameters.get(name)
    if type(value) not in (int, float) or not 0 < value < 1e30:
        raise _refused(f"lora_parameters.{name}", f"{str(value)[:50]}", "it must be a positive number")
    return float(value)


def _refused(name: str, what: str, advice: str) -> InvalidAdapter:
    return InvalidAdapter(
        f"adapter_config.json, of mlx-lm, has {name} {what}; {advice}.",
        param=f"adapter_config.{name}",
        code="adapter_unsupported",
    )
