"""Where a model's weights come from, tensor by tensor, by the names that its files have. Imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open

from tunewright.registry.safetensors_file import tensor_files


class Weights(Protocol):
    """A model's tensors. `get` gives one of them on `device`, in a dtype of the implementation's choosing."""

    def get(self, name: str, device: str) -> torch.Tensor: ...

    def __contains__(self, name: object) -> bool: ...


class SafetensorsWeights:
    """A model folder's tensors, as they are stored; none is read before it is asked for."""

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
