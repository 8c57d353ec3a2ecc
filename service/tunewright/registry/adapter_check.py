"""Checks that an adapter fits a base and can be served, by names, shapes and numbers, before an engine loads it.

vLLM checks less: it ignores weights for modules that its model does not have, copies smaller matrices into the corner
of larger ones, and crashes on some that are too large. All of these are refused here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from tunewright.errors import InvalidAdapter
from tunewright.registry.adapter_config import AdapterConfig, parse_adapter_config, read_config
from tunewright.registry.adapter_forms import in_peft_form
from tunewright.registry.base_modules import BaseModules
from tunewright.registry.safetensors_file import (
    BadTensors,
    Tensor,
    change,
    read_finite,
    read_tensors,
    write_tensors,
)

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
MLX_WEIGHTS_FILE = "adapters.safetensors"
_NAME = re.compile(
    r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_A|lora_B)\.weight"
    r"|base_model\.model\.(?P<embedding>.+)\.(?P<side>lora_embedding_A|lora_embedding_B)"
)
_UNTRAINED = re.compile(
    r"base_model\.model\.(?P<module>(?:.+\.)?(?:embed_tokens|lm_head))\.base_layer\.weight"
)
"""The base's own embeddings, which peft also saves where they are adapted; vLLM ignores them."""
_PICKLES = re.compile(rb"\x80[\x02-\x05]|PK\x03\x04")
"""The first bytes of pickled weights: pickle's own files, and PyTorch's zip archives of them."""


@dataclass(frozen=True)
class LoraPair:
    """The tensors of one module: [rank, in] and [out, rank]; for an embedding [rank, vocabulary] and [width, rank]."""

    module: str
    a: Tensor
    b: Tensor
    is_embedding: bool

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def adapts(self) -> tuple[int, ...]:
        """The shape of the base's weight that it fits."""
        outer, inner = self.b.shape[0], self.a.shape[1]
        return (inner, outer) if self.is_embedding else (outer, inner)


@dataclass(frozen=True)
class CheckedAdapter:
    """An adapter that fits: its config, and its tensors in the order of their file."""

    config: AdapterConfig
    tensors: list[Tensor]
    modules: list[str]
    """Full names, sorted."""

    @property
    def targets(self) -> list[str]:
        """The last parts of its modules' names."""
        return sorted({module.rpartition(".")[2] for module in self.modules})

    def write(self, weights: BinaryIO, folder: Path) -> None:
        """Write the PEFT folder in a canonical form: the same weights and config always make the same bytes.

        Raises InvalidAdapter where a number is NaN or infinite, and OSError.
        """
        config = json.dumps(self.config.as_peft(self.modules), indent=2, sort_keys=True, ensure_ascii=False)
        (folder / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")
        write_weights(weights, self.tensors, folder)


def check_adapter(config: bytes, weights: BinaryIO, base: BaseModules, max_rank: int) -> CheckedAdapter:
    """Check everything but the numbers, which `CheckedAdapter.write` checks. Raises InvalidAdapter."""
    fields, tensors = in_peft_form(read_config(config), read_weights(weights), base)
    return check_served(fields, tensors, base, max_rank)


def check_served(
    fields: dict[str, Any], tensors: Sequence[Tensor], base: BaseModules, max_rank: int
) -> CheckedAdapter:
    """The same for an adapter in peft's form."""
    parsed = parse_adapter_config(fields)
    pairs = lora_pairs(tensors, base)
    for pair in pairs:
        check_rank(pair, parsed, max_rank)
        _check_fit(pair, base)
    modules = sorted(pair.module for pair in pairs)
    check_complete(modules, parsed, base)
    parsed, tensors = _with_one_scaling(parsed, tensors, pairs)
    return CheckedAdapter(named_for(parsed, base), list(tensors), modules)


def named_for(config: AdapterConfig, base: BaseModules) -> AdapterConfig:
    """The config with the base's name, where it has a path on the machine that trained it, which says nothing."""
    if config.base_hint is None or config.base_hint.startswith(("/", ".", "~")):
        return replace(config, base_hint=base.name)
    return config


def write_weights(weights: BinaryIO, tensors: Iterable[Tensor], folder: Path) -> None:
    """Write these tensors to the weights' file in `folder`. Raises as `CheckedAdapter.write`."""
    try:
        with (folder / WEIGHTS_FILE).open("wb") as target:
            write_tensors(target, weights, tensors)
    except BadTensors as error:
        raise _faulty(error) from error


def lora_modules(tensors: Iterable[Tensor]) -> list[str]:
    """The names of the modules with LoRA weights, sorted, in peft's form."""
    found = (_NAME.fullmatch(tensor.name) for tensor in tensors)
    return sorted({match["module"] or match["embedding"] for match in found if match is not None})


def check_numbers(path: Path) -> None:
    """Check a weights file that training wrote. Raises InvalidAdapter where it is incomplete or not finite."""
    with path.open("rb") as weights:
        try:
            for tensor in read_tensors(weights):
                for _ in read_finite(weights, tensor):
                    pass
        except BadTensors as error:
            raise _faulty(error) from error


def read_weights(weights: BinaryIO) -> list[Tensor]:
    try:
        return read_tensors(weights)
    except BadTensors as error:
        weights.seek(0)
        if _PICKLES.match(
            weights.read(4)
        ):  # checked last, since the header's length in a valid file may have the same bytes
            raise pickled(f"{WEIGHTS_FILE} has pickled weights in it") from error
        raise _faulty(error) from error


def pickled(what: str) -> InvalidAdapter:
    """The error for pickled weights, which would run code when they are read."""
    return InvalidAdapter(
        f"{what}: reading those runs whatever code is in them, so they are never opened. Save the adapter as "
        "safetensors: `model.save_pretrained(folder)` in peft does.",
        code="pickled_weights",
    )


def _faulty(error: BadTensors) -> InvalidAdapter:
    return InvalidAdapter(f"{WEIGHTS_FILE} cannot be used: {error}.")


def lora_pairs(tensors: Iterable[Tensor], base: BaseModules) -> list[LoraPair]:
    found: dict[tuple[str, bool], dict[str, Tensor]] = {}
    for tensor in tensors:
        if untrained := _UNTRAINED.fullmatch(tensor.name):
            _check_untrained(tensor, untrained["module"], base)
            continue
        match = _NAME.fullmatch(tensor.name)
        if match is None:
            raise _unknown(tensor.name)
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            raise InvalidAdapter(
                f"{tensor.name} has shape {list(tensor.shape)}, which is no matrix: where the adapter was trained over "
                "several devices, gather its weights before saving."
            )
        module = match["module"] or match["embedding"]
        part = (match["part"] or match["side"])[-1]
        found.setdefault((module, match["embedding"] is not None), {})[part] = tensor
    if not found:
        raise InvalidAdapter(f"{WEIGHTS_FILE} has no LoRA weights in it: save the trained adapter again.")
    return [_pair(module, parts, is_embedding) for (module, is_embedding), parts in found.items()]


def _pair(module: str, parts: dict[str, Tensor], is_embedding: bool) -> LoraPair:
    if len(parts) != 2:
        (there,) = parts
        missing = {"A": "B", "B": "A"}[there]
        raise InvalidAdapter(f"{module} has lora_{there} but no lora_{missing}: the adapter is incomplete.")
    pair = LoraPair(module, parts["A"], parts["B"], is_embedding)
    if pair.a.shape[0] != pair.b.shape[1]:
        raise InvalidAdapter(
            f"{module} has lora_A of rank {pair.a.shape[0]} {list(pair.a.shape)} and lora_B of rank "
            f"{pair.b.shape[1]} {list(pair.b.shape)}; they must be [rank, in] and [out, rank]."
        )
    return pair


def _unknown(name: str) -> InvalidAdapter:
    if "lora_magnitude_vector" in name:
        return InvalidAdapter(
            f"{name} is of DoRA, which vLLM does not serve; merge the adapter into its base.",
            code="adapter_unsupported",
        )
    if ".base_layer." in name:
        return InvalidAdapter(
            f"{name} is a weight of the base itself, as in a model's `state_dict()`: save the adapter alone, with "
            "peft's `model.save_pretrained(folder)`."
        )
    if name.endswith((".weight", ".bias")) and ".lora_" not in name:
        return InvalidAdapter(
            f"{name} is a whole weight beside the LoRA weights (a resized vocabulary, or modules_to_save), which vLLM "
            "does not serve; merge the adapter into its base.",
            code="adapter_unsupported",
        )
    return InvalidAdapter(
        f"{name} is no LoRA weight that is known here: names are base_model.model.<module>.lora_A.weight and "
        "...lora_B.weight, as peft's `save_pretrained` writes them.",
        code="adapter_unsupported",
    )


def _check_untrained(tensor: Tensor, module: str, base: BaseModules) -> None:
    shapes = base.shapes_of(module)
    if shapes and tensor.shape not in shapes:
        raise InvalidAdapter(
            f"{tensor.name} has shape {list(tensor.shape)}, and {base.name} has {_either(shapes)} there: the adapter "
            "was trained on another vocabulary.",
            code="adapter_does_not_fit",
        )


def check_rank(pair: LoraPair, config: AdapterConfig, max_rank: int) -> None:
    wanted = config.rank_of(pair.module)
    if pair.rank != wanted:
        raise InvalidAdapter(
            f"{pair.module} has rank {pair.rank} in its weights and {wanted} in adapter_config.json: the two files are "
            "not of the same adapter."
        )
    if pair.rank > max_rank:
        raise InvalidAdapter(
            f"The engine serves adapters up to rank {max_rank}, and {pair.module} has rank {pair.rank}: start the "
            "service with a larger --max-lora-rank.",
            code="adapter_unsupported",
        )


def _with_one_scaling(
    config: AdapterConfig, tensors: Sequence[Tensor], pairs: Sequence[LoraPair]
) -> tuple[AdapterConfig, Sequence[Tensor]]:
    """The same adapter with one scaling for all of its modules, since versions of vLLM that ignore patterns use one.

    Where scalings differ, each lora_B is multiplied by its own, as a part of the largest; then all modules have the
    largest rank, their matrices filled up with zeros, and no patterns are left. The same is done where the config has a
    larger rank than any module, since vLLM looks at that.
    """
    scalings = {pair.module: config.scaling_of(pair.module) for pair in pairs}
    largest = max(scalings.values())
    rank = max(pair.rank for pair in pairs)
    is_one = all(abs(scaling - config.scaling) <= 1e-6 * config.scaling for scaling in scalings.values())
    if is_one and max(config.rank, *config.rank_pattern.values(), rank) == rank:
        return config, tensors
    changed: dict[str, Tensor] = {}
    for pair in pairs:
        factor = scalings[pair.module] / largest
        changed[pair.a.name] = change(pair.a, shape=(rank, pair.a.shape[1]))
        changed[pair.b.name] = change(pair.b, shape=(pair.b.shape[0], rank), factor=factor)
    uniform = replace(
        config,
        rank=rank,
        alpha=largest * (math.sqrt(rank) if config.use_rslora else rank),
        rank_pattern={},
        alpha_pattern={},
    )
    return uniform, [changed.get(tensor.name, tensor) for tensor in tensors]


def _check_fit(pair: LoraPair, base: BaseModules) -> None:
    shapes = base.shapes_of(pair.module)
    if shapes is None:
        raise InvalidAdapter(
            f"{base.name} has no module {pair.module} ({base.describe()}): the adapter was trained on another base.",
            code="adapter_does_not_fit",
        )
    if shapes and pair.adapts not in shapes:
        raise InvalidAdapter(
            f"{pair.module} has lora_A {list(pair.a.shape)} and lora_B {list(pair.b.shape)}, for a weight of shape "
            f"{list(pair.adapts)}; in {base.name} it has {_either(shapes)}: the adapter was trained on another base.",
            code="adapter_does_not_fit",
        )


def check_complete(modules: list[str], config: AdapterConfig, base: BaseModules) -> None:
    """Raise InvalidAdapter where weights are missing for a module that the config names, from the adapter's first layer
    to its last."""
    if config.targets is None:
        return
    missing = base.between(modules, config.targets) - set(modules)
    if missing:
        raise InvalidAdapter(
            f"{min(missing)} is among the target_modules of adapter_config.json, and {WEIGHTS_FILE} has no weights for "
            f"it ({len(missing)} such modules): the adapter is incomplete; save it again."
        )


def _either(shapes: Iterable[tuple[int, ...]]) -> str:
    return " or ".join(str(list(shape)) for shape in sorted(shapes))
