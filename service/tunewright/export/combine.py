"""Combines LoRA adapters of one base into a new one, by the changes that they make to the weights.

An adapter changes a weight by its task vector s B A ("Editing models with task arithmetic", Ilharco 2023). Task vectors
are what is added, averaged and pruned here. To add or average the factors, B with B and A with A, is a known mistake:
(B1 + B2)(A1 + A2) contains the cross terms B1 A2 and B2 A1, which no adapter learned, and the result depends on how the
same adapters are factored.

- `linear`: the weighted sum. Exact where the rank is at least the sum of theirs.
- `soup`: the mean ("Model soups", Wortsman 2022); the weights are 1/n.
- `ties`: each task vector keeps its largest numbers; of each number of the sum, only the terms with the stronger sign
  count ("TIES-Merging", Yadav 2023).
- `dare`: numbers of each task vector are dropped at random and the rest is scaled up, then the vectors are summed
  ("Language models are super Mario", Yu 2023; peft's `dare_linear`).

The results of `ties` and `dare` have full rank: the new adapter is the nearest one of its rank, and the error is
reported.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from peft.utils.merge_utils import dare_linear
from peft.utils.merge_utils import ties as ties_merge
from safetensors.torch import save_file

from tunewright.atomic import publish_folder
from tunewright.errors import ExportUnsupported, InvalidAdapter, InvalidRequest, quoted
from tunewright.export.arithmetic import read, same_numbers
from tunewright.export.folder import CombineMethod
from tunewright.export.low_rank import Factors, add, nearest
from tunewright.export.model_files import as_json
from tunewright.registry.adapter_check import CONFIG_FILE, WEIGHTS_FILE
from tunewright.registry.adapter_config import AdapterConfig, read_config
from tunewright.registry.mergeable import LowRank, MergePlan, check_mergeable, merge_only

Tensor = Any  # torch has no types here
DENSITY = 0.5
MAX_RANK = 64
"""The default of `--max-lora-rank`, the largest rank that engines serve."""


@dataclass(frozen=True)
class Combined:
    """The result of combining. Errors are relative, in Frobenius norms: ||new - exact|| / ||exact||."""

    rank: int
    modules: int
    error: float
    """The error of all modules together; 0.0 where no rank was cut."""
    worst_module: str | None
    """The module with the largest error; None where all are exact."""
    worst_error: float
    bytes: int
    """Size of the new weights' file."""


def combine(
    adapters: Sequence[tuple[Path, float]],
    base: Path,
    out: Path,
    *,
    method: CombineMethod,
    density: float = DENSITY,
    rank: int | None = None,
    max_rank: int = MAX_RANK,
    seed: int = 0,
    on_module: Callable[[int, int], None] = lambda done, modules: None,
) -> Combined:
    """Combine the PEFT folders `adapters`, each with its weight, into the PEFT folder `out`, which must not exist yet.

    The new adapter has alpha = rank, hence scaling 1, float32 weights, and one rank throughout: `rank`, or the largest
    sum of the adapters' ranks in a module, up to `max_rank`. Modules that need less are padded with zeros; a module
    that only some adapters change is made from those. `density`, in (0, 1], is the share of each task vector that
    `ties` and `dare` keep. The same inputs and `seed` result in the same bytes.

    `on_module` is called after each module, with the number of modules done and of all. Raises InvalidRequest for
    invalid arguments, ExportUnsupported for adapters whose change is not a low-rank product, InvalidAdapter for those
    that do not fit the base, FileExistsError, and OSError. The caller must know that the adapters were trained on this
    base, and not on another one of the same shape.
    """
    weights = _check_arguments(adapters, method, density, rank, max_rank)
    if out.exists():
        raise FileExistsError(f"{out} already exists")
    plans = [_read(base, path) for path, _ in adapters]
    found: dict[str, list[tuple[LowRank, float]]] = {}
    for plan, weight in zip(plans, weights, strict=True):
        for change in _changes(plan):
            found.setdefault(change.module, []).append((change, weight))
    factors: dict[str, Factors] = {}
    for module in sorted(found):
        factors[module] = _combined(module, found[module], method, density, rank, max_rank, seed)
        on_module(len(factors), len(found))
    kinds = {module: changes[0][0].kind for module, changes in found.items()}
    size, width = _write(out, factors, kinds, rank, plans)
    return _summary(factors, width, size)


def _check_arguments(
    adapters: Sequence[tuple[Path, float]], method: str, density: float, rank: int | None, max_rank: int
) -> list[float]:
    """The weights to combine with. Raises InvalidRequest."""
    if method not in get_args(CombineMethod):
        raise InvalidRequest(
            f"method is {quoted(method)}; it must be one of {get_args(CombineMethod)}.", param="method"
        )
    if len(adapters) < 2:
        raise InvalidRequest("Combining takes two adapters at least.", param="adapters")
    weights = [float(weight) for _, weight in adapters]
    if not all(map(math.isfinite, weights)) or not any(weights):
        raise InvalidRequest("Weights must be finite numbers, and not all 0.", param="weights")
    if method == "soup":
        if len(set(weights)) > 1:
            raise InvalidRequest(
                "A soup is the mean and takes no weights of its own; use method linear.", param="weights"
            )
        weights = [1 / len(adapters)] * len(adapters)
    if not 0 < density <= 1:
        raise InvalidRequest("density must be more than 0 and at most 1.", param="density")
    if max_rank < 1 or (rank is not None and not 1 <= rank <= max_rank):
        raise InvalidRequest(f"rank must be from 1 to {max_rank}.", param="rank")
    return weights


def _read(base: Path, adapter: Path) -> MergePlan:
    """The plan of merging the adapter. Raises ExportUnsupported where it is more than low-rank products."""
    config = read_config((adapter / CONFIG_FILE).read_bytes())
    if (why := merge_only(config)) is not None:
        raise ExportUnsupported(
            f"{adapter.name} cannot be combined with others, since it is no sum of low-rank products: its "
            f"adapter_config.json has {why.partition(':')[0]}.",
            param=f"adapter_config.{why.partition(' ')[0]}",
        )
    plan = check_mergeable(base, adapter)
    if plan.same:
        raise ExportUnsupported(
            f"{adapter.name} cannot be combined with others, since it keeps its embeddings and its output head tied.",
            param="adapter_config.ensure_weight_tying",
        )
    for output in plan.outputs:
        theirs = plan.base.tensors.get(output.name)
        if theirs is not None and theirs != output.source and not same_numbers(output.source, theirs):
            raise InvalidAdapter(
                f"{adapter.name} was trained on other embeddings than the base's: its {output.source.tensor.name} "
                "differs.",
                code="adapter_does_not_fit",
            )
    return plan


def _changes(plan: MergePlan) -> list[LowRank]:
    return [output.change for output in plan.outputs if isinstance(output.change, LowRank)]


def _combined(
    module: str,
    changes: list[tuple[LowRank, float]],
    method: str,
    density: float,
    rank: int | None,
    max_rank: int,
    seed: int,
) -> Factors:
    for change, _ in changes:
        if not (bool(torch.isfinite(read(change.a)).all()) and bool(torch.isfinite(read(change.b)).all())):
            raise InvalidAdapter(
                f"An adapter has numbers in {module} that are NaN or infinite: it is broken."
            )
    if method in ("linear", "soup"):
        products = [(read(c.b).double() * (c.scaling * weight), read(c.a)) for c, weight in changes]
        factors = add(products, rank or max_rank)
    else:
        vectors = [(read(c.b) @ read(c.a)).mul_(c.scaling) for c, _ in changes]
        weights = torch.tensor([weight for _, weight in changes])
        digest = hashlib.sha256(f"{seed} {module}".encode()).digest()
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns that a density of 1 prunes nothing
            torch.manual_seed(int.from_bytes(digest[:7], "little"))
            merged = (ties_merge if method == "ties" else dare_linear)(vectors, weights, density)
            factors = nearest(merged, rank or min(max_rank, sum(c.a.shape[0] for c, _ in changes)))
    if not bool(torch.isfinite(factors.b).all()):
        raise InvalidRequest(
            f"The weights are too large: {module} has infinite numbers then.", param="weights"
        )
    return factors


def _write(
    out: Path,
    factors: dict[str, Factors],
    kinds: Mapping[str, str],
    rank: int | None,
    plans: list[MergePlan],
) -> tuple[int, int]:
    """Write the PEFT folder. Returns the bytes of the weights and their rank."""
    width = rank or max(found.rank for found in factors.values())
    tensors: dict[str, Tensor] = {}
    for module, found in factors.items():
        name, padded = f"base_model.model.{module}", found.padded(width)
        if kinds[module] == "embedding":
            names = f"{name}.lora_embedding_A", f"{name}.lora_embedding_B"
        else:
            names = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        tensors |= {names[0]: padded.a.contiguous(), names[1]: padded.b.contiguous()}
    hints = {plan.config.base_hint for plan in plans}
    config = AdapterConfig(
        rank=width,
        alpha=float(width),
        fan_in_fan_out="conv1d" in kinds.values(),
        base_hint=hints.pop() if len(hints) == 1 else None,
    )
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_file(tensors, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        (temporary / CONFIG_FILE).write_bytes(as_json(config.as_peft(sorted(factors))))
        publish_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return (out / WEIGHTS_FILE).stat().st_size, width


def _summary(factors: dict[str, Factors], rank: int, size: int) -> Combined:
    errors = {
        module: math.sqrt(found.squared_error / found.squared_norm)
        for module, found in factors.items()
        if found.squared_norm and found.squared_error
    }
    worst = max(errors, key=lambda module: errors[module], default=None)
    norm = sum(found.squared_norm for found in factors.values())
    error = sum(found.squared_error for found in factors.values())
    return Combined(
        rank=rank,
        modules=len(factors),
        error=math.sqrt(error / norm) if norm else 0.0,
        worst_module=worst,
        worst_error=errors[worst] if worst is not None else 0.0,
        bytes=size,
    )
