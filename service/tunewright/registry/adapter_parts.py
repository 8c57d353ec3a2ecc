"""Sorts the tensors of an adapter's file: LoRA's two matrices, and what peft saves beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from tunewright.errors import ExportUnsupported, InvalidAdapter
from tunewright.registry.base_tensors import BaseTensors
from tunewright.registry.safetensors_file import Tensor

_PREFIX = "base_model.model."
_MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.weight)?")
_BIAS = re.compile(r"(.+)\.lora_B\.bias")
_TOKENS = re.compile(r"(.+)\.token_adapter\.trainable_tokens_delta")


class AdapterParts:
    """The tensors of an adapter by type. Modules and tensors have the names of the model in memory."""

    def __init__(self, tensors: Iterable[Tensor], base: BaseTensors) -> None:
        self.lora: list[Tensor] = []
        """LoRA's matrices, and all unknown tensors."""
        self.magnitudes: dict[str, Tensor] = {}
        """DoRA's magnitudes, by module."""
        self.biases: dict[str, Tensor] = {}
        """LoRA's biases, by module."""
        self.tokens: dict[str, Tensor] = {}
        """Trained rows of embeddings, by module."""
        self.whole: dict[str, Tensor] = {}
        """Tensors that replace those of the base, by name."""
        self.untrained: set[str] = set()
        """Those of `whole` that peft saves since there is LoRA on them."""
        for tensor in tensors:
            self._add(tensor, base)

    def _add(self, tensor: Tensor, base: BaseTensors) -> None:
        inner = tensor.name.removeprefix(_PREFIX)
        if inner == tensor.name:
            self.lora.append(tensor)
            return
        for pattern, kind in ((_MAGNITUDE, self.magnitudes), (_BIAS, self.biases), (_TOKENS, self.tokens)):
            if (match := pattern.fullmatch(inner)) is not None:
                kind[match[1]] = tensor
                return
        name = inner.replace(".base_layer.", ".")
        if base.find(name) is None and not (name == base.head and base.is_tied):
            self.lora.append(tensor)
            return
        if name in self.whole:
            raise InvalidAdapter(f"{tensor.name} is in the adapter twice, with and without base_layer.")
        self.whole[name] = tensor
        if name != inner and name.endswith(".weight"):
            self.untrained.add(name)


def covered(name: str, modules: Iterable[str]) -> bool:
    """Whether the tensor is in one of `modules_to_save`. peft saves each module whose name ends in one of them."""
    ends = tuple(modules)
    parts = name.split(".")[:-1]
    return bool(ends) and any(".".join(parts[: at + 1]).endswith(ends) for at in range(len(parts)))


def token_indices(value: Any, modules: list[str], base: BaseTensors) -> dict[str, tuple[int, ...]]:
    """The indices of the rows that were trained in each of `modules`.

    `value` is `trainable_token_indices`: a list, for the embeddings, or one for each module. Raises InvalidAdapter and
    ExportUnsupported.
    """
    found: dict[str, tuple[int, ...]] = {}
    for module in modules:
        if isinstance(value, dict):
            indices = next((v for key, v in value.items() if module.endswith(key)), None)
        else:
            indices = value if base.find(f"{module}.weight") == base.embedding else None
        if not isinstance(indices, list) or not all(type(at) is int for at in indices):
            raise InvalidAdapter(
                f"{module} has trained tokens, and adapter_config.json does not say which in trainable_token_indices.",
                param="adapter_config.trainable_token_indices",
            )
        if len(set(indices)) != len(indices):
            raise ExportUnsupported(
                f"adapter_config.json has a token of {module} twice in trainable_token_indices.",
                param="adapter_config.trainable_token_indices",
            )
        found[module] = tuple(indices)
    if value and not found:
        raise InvalidAdapter(
            "adapter_config.json has trainable_token_indices, and there are no trained tokens in the adapter.",
            param="adapter_config.trainable_token_indices",
        )
    return found
