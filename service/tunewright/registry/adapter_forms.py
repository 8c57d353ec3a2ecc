"""Rewrites the tensors' names and the config of an adapter to the form in which peft's `save_pretrained` writes them.

An adapter that was saved by other means has the same numbers under other names (a wrapper's prefix, the adapter's own
name, no prefix), or in the layout of MLX. Names that are not known stay as they are, and are refused by the checks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tunewright.errors import InvalidAdapter
from tunewright.registry import mlx_form
from tunewright.registry.base_modules import BaseModules
from tunewright.registry.safetensors_file import Tensor, change

PREFIX = "base_model.model."
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names that torch.compile, FSDP and activation checkpointing add, anywhere."""
_OUTER = frozenset({"module", "_forward_module"})
"""Parts of names that data parallel and Lightning's wrappers add at the beginning."""
_MOST_DROPPED = 3
"""Most parts that a name may have before the names of the base begin."""
_ADAPTER = r"(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?"
_PARTS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (
        re.compile(rf"(?P<module>.+)\.lora_(?P<part>[ABab]){_ADAPTER}(?P<bias>\.weight|\.bias)?"),
        lambda found: f".lora_{found['part'].upper()}{found['bias'] or '.weight'}",
    ),
    (
        re.compile(rf"(?P<module>.+)\.lora_embedding_(?P<part>[AB]){_ADAPTER}"),
        lambda found: f".lora_embedding_{found['part']}",
    ),
    (
        re.compile(rf"(?P<module>.+)\.lora_magnitude_vector{_ADAPTER}(?:\.weight)?"),
        lambda found: ".lora_magnitude_vector",
    ),
    (
        re.compile(rf"(?P<module>.+)\.token_adapter\.trainable_tokens_delta{_ADAPTER}"),
        lambda found: ".token_adapter.trainable_tokens_delta",
    ),
    (
        re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<adapter>[^.]+)(?P<rest>\..+)"),
        lambda found: found["rest"],
    ),
)
"""Names of an adapter's tensors, with the adapter's own name or without, and how they end in peft's files."""
_UNUSED = re.compile(r".+\.original_module\..+")
"""The base's copy of a module that `modules_to_save` replaces."""


@dataclass(frozen=True)
class _Name:
    """The name of a tensor in three parts; `ending` is as in peft's files."""

    module: str
    ending: str
    adapter: str | None = None
    is_lora: bool = True


def in_peft_form(
    config: dict[str, Any], tensors: Sequence[Tensor], base: BaseModules
) -> tuple[dict[str, Any], list[Tensor]]:
    """The config and the tensors as peft would have saved them. Raises InvalidAdapter where it is not known how."""
    if mlx_form.is_mlx(config):
        config, tensors = mlx_form.as_peft(config, tensors)
    parsed = [(tensor, _parsed(tensor.name)) for tensor in tensors if not _UNUSED.fullmatch(tensor.name)]
    adapters = sorted({name.adapter for _, name in parsed if name.adapter is not None})
    if len(adapters) > 1:
        raise InvalidAdapter(
            f"The weights are of several adapters ({', '.join(adapters[:5])[:200]}): save one of them, with peft's "
            f"`model.save_pretrained(folder, selected_adapters=[{adapters[0][:100]!r}])`."
        )
    rename = _renaming([name.module for _, name in parsed if name.is_lora], base)
    renamed: dict[str, Tensor] = {}
    for tensor, name in parsed:
        new = f"{PREFIX}{rename(name.module)}{name.ending}"
        if new in renamed:
            raise InvalidAdapter(
                f"{new[:200]} is in the adapter twice, under two names, one of them {tensor.name[:200]}: save the "
                "adapter again with peft's `model.save_pretrained(folder)`."
            )
        renamed[new] = tensor if new == tensor.name else change(tensor, name=new)
    return config, list(renamed.values())


def _parsed(name: str) -> _Name:
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] in _OUTER:
        parts = parts[1:]
    inner = ".".join(["", *parts]).rpartition(f".{PREFIX}")[2].removeprefix(".")
    for pattern, ending in _PARTS:
        if (found := pattern.fullmatch(inner)) is not None:
            is_lora = "rest" not in found.groupdict()
            return _Name(found["module"], ending(found), found["adapter"], is_lora)
    module, dot, parameter = inner.rpartition(".")
    if module.endswith(".base_layer"):
        module, parameter = module.removesuffix(".base_layer"), f"base_layer.{parameter}"
    return _Name(module, f"{dot}{parameter}", is_lora=False) if module else _Name("", inner, is_lora=False)


def _renaming(modules: Iterable[str], base: BaseModules) -> Callable[[str], str]:
    """How the names of modules become those of the base: one rule for all of them. They stay where there is none."""
    names = sorted(set(modules))

    def fits(rule: Callable[[str], str]) -> bool:
        return all(base.shapes_of(rule(name)) is not None for name in names)

    def kept(name: str) -> str:
        return name

    if not names or fits(kept):
        return kept
    for dropped in range(1, _MOST_DROPPED + 1):
        if len({tuple(name.split(".")[:dropped]) for name in names}) > 1:
            break

        def shorter(name: str, dropped: int = dropped) -> str:
            return ".".join(name.split(".")[dropped:])

        if fits(shorter):
            return shorter
    missing = next(name for name in names if base.shapes_of(name) is None)
    rules = []
    for prefix in sorted(base.prefixes_of(missing)):

        def longer(name: str, prefix: str = prefix) -> str:
            return name if base.shapes_of(name) is not None else f"{prefix}{name}"

        if fits(longer):
            rules.append(longer)
        if len(rules) > 1:  # which one is meant, nobody knows
            break
    return rules[0] if len(rules) == 1 else kept
