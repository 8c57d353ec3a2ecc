"""Where a model's weights come from, tensor by tensor, by the names that its files have. Imports torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open


class Weights(Protocol):
    """A model's tensors. `get` gives one of them on `device`, in a dtype of the implementation's choosing."""

    def get(self, name: str, device: str) -> torch.Tensor: ...

    def __contains__(self, name: object) -> bool: ...


class SafetensorsWeights:
    """The tensors of a folder's `*.safetensors`, as they are stored; nothing is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError, and safetensors' own error where a file is none."""
        self._files = tensor_files(folder)

    def get(self, name: str, device: str) -> torch.Tensor:
        """Raises KeyError where there is no such tensor."""
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(name).to(device)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def names(self) -> list[str]:
        return sorted(self._files)

    def files(self) -> dict[str, Path]:
        """In which file each tensor lies."""
        return dict(self._files)


def tensor_files(folder: Path) -> dict[str, Path]:
    """In which file each tensor lies: by the index where there is one, else by the files' headers."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            files |= dict.fromkeys(file.keys(), path)
    return files
