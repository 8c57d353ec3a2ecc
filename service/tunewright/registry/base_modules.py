"""The modules of a base that an adapter can change, and the shapes of their weights, from the headers of its files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tunewright.registry.safetensors_file import read_shapes

_WRAPPERS = ("model", "language_model", "text_model")
"""Parts of module names in which the files of multimodal models differ from transformers and vLLM."""
_UNPACKED = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""Types of unpacked weights; packed ones have other shapes than the layer."""
_PACKED = (".qweight", ".weight_packed")


class BaseModules:
    """The modules of a base. Reads only headers, however large the base is."""

    def __init__(self, name: str, folder: Path) -> None:
        """`name` is for messages. Raises OSError, ValueError and BadTensors where the base cannot be read."""
        self.name = name
        config = json.loads((folder / "config.json").read_text())
        self._is_multimodal = "text_config" in config
        self._shapes: dict[str, set[tuple[int, ...]]] = {}
        for tensor, (dtype, shape) in read_shapes(folder).items():
            if tensor.endswith(".weight"):
                self._add(tensor.removesuffix(".weight"), shape if dtype in _UNPACKED else None)
            for end in _PACKED:
                if tensor.endswith(end):
                    self._add(tensor.removesuffix(end), None)
        self._tops = {module.partition(".")[0] for module in self._shapes}
        self._lacks_prefix = any(
            number is not None and "." not in stack for stack, number in map(_layer, self._shapes)
        )
        """Whether the files leave out the model's own prefix ("transformer."), which is in the names in memory."""
        self._plain: dict[str, set[str]] = {}
        for module in self._shapes:
            self._plain.setdefault(_without_wrappers(module), set()).add(module)

    def shapes_of(self, module: str) -> set[tuple[int, ...]] | None:
        """The shapes [out, in] that the weight of `module` may have.

        The set is empty where they are unknown since the base is quantized. None where there is no such module.
        """
        found = self._find(module)
        if not found and module.rpartition(".")[2] == "lm_head":
            # Tied to the embeddings, and not in the files.
            found = self._find(module.removesuffix("lm_head") + "model.embed_tokens") or self._find(
                module.removesuffix("lm_head") + "embed_tokens"
            )
        if not found:
            return None
        return set().union(*(self._shapes[name] for name in found))

    def prefixes_of(self, module: str) -> set[str]:
        """What precedes `module`, up to a dot, in the names of those of the base's modules that end in it."""
        end = f".{module}"
        return {name.removesuffix(module) for name in self._shapes if name.endswith(end)}

    def between(self, modules: Iterable[str], targets: Iterable[str]) -> set[str]:
        """The base's modules that end in one of `targets`, between the first and the last layer of `modules`.

        Only stacks of layers that have one of `modules` count. Experts are left out, since they are not modules in some
        versions of transformers.
        """
        layers: dict[str, list[int]] = {}
        for module in modules:
            stack, number = _layer(module)
            if number is not None:
                layers.setdefault(stack, []).append(number)
        ends = tuple(targets)
        found = set()
        for module, shapes in self._shapes.items():
            stack, number = _layer(module)
            if number is None or stack not in layers or ".experts." in module:
                continue
            if any(len(shape) != 2 for shape in shapes):
                continue
            named = any(module == end or module.endswith(f".{end}") for end in ends)
            if named and min(layers[stack]) <= number <= max(layers[stack]):
                found.add(module)
        return found

    def describe(self) -> str:
        """Its stacks of layers, for messages."""
        counts: dict[str, int] = {}
        for module in self._shapes:
            stack, number = _layer(module)
            if number is not None:
                counts[stack] = max(counts.get(stack, 0), number + 1)
        return ", ".join(f"{count} {stack}" for stack, count in sorted(counts.items())[:3]) or "no layers"

    def _add(self, module: str, shape: tuple[int, ...] | None) -> None:
        self._shapes.setdefault(module, set()).update([shape] if shape is not None else [])

    def _find(self, module: str) -> set[str]:
        """The names of the module in the files: the same, or without the model's prefix where the files lack it."""
        if module in self._shapes:
            return {module}
        first, _, rest = module.partition(".")
        if self._lacks_prefix and first not in self._tops and rest in self._shapes:
            return {rest}
        return self._plain.get(_without_wrappers(module), set()) if self._is_multimodal else set()


def _without_wrappers(module: str) -> str:
    parts = module.split(".")
    return ".".join(part for part in parts if part not in _WRAPPERS)


def _layer(module: str) -> tuple[str, int | None]:
    """("model.layers", 3) of "model.layers.3.self_attn.q_proj"; None where it is in no layer."""
    parts = module.split(".")
    for at, part in enumerate(parts):
        if part.isdecimal() and part.isascii():
            return ".".join(parts[:at]), int(part)
    return module, None
