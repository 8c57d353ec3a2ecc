"""Reads the weights of a model tensor by tensor, by their names in its files. Imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open

from tunewright.registry.safetensors_file import tensor_files


class Weights(Protocol):
    """A model's tensors. `get` returns one of them on `device`; the implementation chooses the dtype."""

    def get(self, name: str, device: str) -> torch.Tensor: ...

    def __contains__(self, name: object) -> bool: ...


class SafetensorsWeights:
    """The tensors of a model folder, as stored; each is read only when it is requested."""

    def __init__(self, folder: Path) -> None:
        """Raises BadTensors and OSError, as `weight_files`."""
        self._files = tensor_files(folder)

    def get(self, name: str, device: str) -> torch.Tensor:
        """Raises KeyError where there is no such tensor."""
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(name).to(device)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def names(self) -> list[str]:
        return sorted(self._files)
