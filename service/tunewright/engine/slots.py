"""The slots of an engine on a GPU: how many adapters one of its batches may mix, and whether vLLM has CUDA graphs for
several numbers of them.

vLLM allocates all slots when it starts, each as large as an adapter of the largest rank on every linear layer. Why the
numbers are what they are is in docs/decisions/0029-slots.md. On the CPU nothing is chosen here.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tunewright.engine.arguments import last_given
from tunewright.engine.command import EngineOptions
from tunewright.engine.gpus import NoDriver, gpu_memory
from tunewright.plan.shape import ModelShape, UnknownShape, adapter_parameters
from tunewright.registry.model_shape import read_shape
from tunewright.registry.safetensors_file import BadTensors

LEAST, MOST = 4, 64
"""Slots that `auto` chooses."""
SHARE = 0.5
"""Part for the slots of what an engine's memory has beside weights, workspace and one request of the longest length."""
WORKSPACE = 4 * 2**30
"""Bytes for activations, CUDA's context and the graphs that every engine has: 3.6 to 4.3 GiB were measured (7B)."""
GRAPHS_OF_A_LAYER = 27 * 2**18
"""Bytes of the CUDA graphs for one more number of active adapters, in each layer, with the sizes of a batch that
`command` names. With vLLM's own it was 342 MiB for 28 layers; all graphs took 3.54 GiB then, and 1.95 with those."""
WORTH_GRAPHS = 8
"""Slots below which more of them are worth more than CUDA graphs by their number."""
_READ = {
    "max_loras": int, "max_cpu_loras": int, "max_lora_rank": int, "max_model_len": int, "gpu_memory_utilization": float,
}  # fmt: skip


@dataclass(frozen=True)
class BaseCost:
    """What a base takes of an engine's memory."""

    weights: int
    """Bytes."""
    adapter: int
    """Numbers in an adapter of rank 1 on every linear layer."""
    layers: int
    context: int
    """Longest request in tokens."""
    token: int
    """Bytes of the KV cache for one token, at most."""
    kv_heads: int = 1
    """Over so many GPUs at most the KV cache is split."""

    def slot(self, options: EngineOptions) -> int:
        """Bytes of a slot."""
        return self.adapter * options.max_lora_rank * (4 if options.dtype == "float32" else 2)

    def graphs(self, slots: int, options: EngineOptions) -> int:
        """Bytes of the CUDA graphs for 1, 2, 4, ... active adapters, in addition to those for all slots."""
        return 0 if options.enforce_eager else slots.bit_length() * self.layers * GRAPHS_OF_A_LAYER


@dataclass(frozen=True)
class Slots:
    """The choice for one engine."""

    count: int
    graphs: int
    """Bytes of the CUDA graphs by the number of active adapters."""
    has_graphs: bool
    """Whether vLLM looks at the number of active adapters (`specialize_active_lora`)."""
    why: str


def read_cost(folder: Path) -> BaseCost | None:
    """The cost of the base in a folder, from its config and the headers of its weights; None where it is not known."""
    try:
        return cost_of(read_shape(folder))
    except (OSError, ValueError, BadTensors, UnknownShape):
        return None


def cost_of(shape: ModelShape) -> BaseCost:
    return BaseCost(
        weights=shape.stored_bytes,
        # The layers of a quantized base are packed, and are not among its modules: then its config says what it has.
        adapter=max(adapter_parameters(shape.adapted("all-linear"), 1), _by_config(shape)),
        layers=shape.layers,
        context=shape.context,
        kv_heads=shape.kv_heads,
        token=2 * 2 * shape.layers * shape.kv_heads * shape.head_dim,
    )


def with_slots(
    options: EngineOptions, cost: BaseCost | None, vllm_args: Sequence[str], *, is_deployment: bool
) -> tuple[EngineOptions, str | None]:
    """The options with which an engine starts, and why it has its slots; None where there was nothing to choose."""
    if not options.on_gpu or not options.enable_lora:
        return options, None
    try:
        _, memory = gpu_memory(options.device.removeprefix("cuda:"))
    except NoDriver:
        memory = 0
    slots = choose_slots(with_operators(options, vllm_args, is_deployment=is_deployment), cost, memory)
    if not (slots.has_graphs and vllm_specializes()):
        return replace(options, max_loras=slots.count), slots.why
    share = options.gpu_memory_utilization
    if share is not None:
        # Some versions of vLLM capture graphs beside the share that they are given.
        share -= slots.graphs / memory
    chosen = replace(
        options, max_loras=slots.count, specialize_active_lora=True, gpu_memory_utilization=share
    )
    return chosen, slots.why


def choose_slots(options: EngineOptions, cost: BaseCost | None, memory: int) -> Slots:
    """The slots of an engine on a GPU with so many bytes of memory (0: unknown), of which it has a share. On several
    GPUs each has a part of the weights and of the KV cache; of an adapter vLLM has one half whole on each, so a slot
    is counted whole.

    A number that is set holds. Else it is 4 to 64, at most `max_cpu_loras`: as many as fit into `SHARE` of what
    weights, workspace and one request of the longest length leave. CUDA graphs by the number of active adapters count
    too; there are none where fewer than `WORTH_GRAPHS` slots would fit beside them.
    """
    most = min(MOST, options.max_cpu_loras)
    if cost is None or not memory:
        unknown = "the base's shape" if cost is None else "the GPU's memory"
        return _unknown(options, min(LEAST, most), unknown)
    slot = cost.slot(options)
    own = int((options.gpu_memory_utilization or 0.0) * memory)
    gpus = len(options.devices)
    request = cost.token * (options.max_model_len or cost.context) // min(gpus, cost.kv_heads)
    room = max(0, int(SHARE * (own - cost.weights // gpus - WORKSPACE - request)))

    def fits(count: int, *, graphs: bool) -> bool:
        return count * slot + (cost.graphs(count, options) if graphs else 0) <= room

    count = options.max_loras
    if count is None:
        beside_graphs = max((n for n in range(1, most + 1) if fits(n, graphs=True)), default=0)
        alone = max((n for n in range(1, most + 1) if fits(n, graphs=False)), default=0)
        count = beside_graphs if beside_graphs >= min(WORTH_GRAPHS, most) else max(alone, min(LEAST, most))
    has_graphs = count > 1 and fits(count, graphs=True)
    graphs = cost.graphs(count, options) if has_graphs else 0
    return Slots(count, graphs, has_graphs, _why(options, count, slot, graphs, room, own, most=most))


def with_operators(options: EngineOptions, vllm_args: Sequence[str], *, is_deployment: bool) -> EngineOptions:
    """The options as vLLM reads them: the operator's arguments go over those of a base, and not over what a deployment
    has set."""
    changed: dict[str, Any] = {}
    for name, read in _READ.items():
        given = last_given(vllm_args, f"--{name.replace('_', '-')}")
        if given is None or (is_deployment and getattr(options, name) is not None):
            continue
        with suppress(ValueError):  # vLLM knows more forms, such as "auto" and "32k"
            value = read(given)
            if value > 0:  # -1 is "auto"
                changed[name] = value
    eager = options.enforce_eager or "--enforce-eager" in vllm_args
    return replace(options, **{**changed, "enforce_eager": eager})


def vllm_specializes() -> bool:
    """Whether the installed vLLM has `--specialize-active-lora`. It is not imported."""
    found = find_spec("vllm")
    places = found.submodule_search_locations if found else None
    try:
        return any("specialize_active_lora" in (Path(p) / "config/lora.py").read_text() for p in places or ())
    except OSError:
        return False


def _by_config(shape: ModelShape) -> int:
    """Inputs and outputs of the linear layers of a dense decoder with an MLP of three."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = 2 * (shape.hidden + queries) + 2 * (shape.hidden + keys)
    return shape.layers * (attention + 3 * (shape.hidden + shape.intermediate))


def _unknown(options: EngineOptions, least: int, what: str) -> Slots:
    if options.max_loras is not None:
        return Slots(
            options.max_loras, 0, False, f"{_named(options.max_loras)}, as was set; {what} is not known"
        )
    return Slots(least, 0, False, f"{_named(least)}: {what} is not known")


def _why(
    options: EngineOptions, count: int, slot: int, graphs: int, room: int, own: int, *, most: int
) -> str:
    each = f"{_named(count)} of {slot / 1e6:.0f} MB (rank {options.max_lora_rank})"
    beside = f" and {graphs / 1e9:.2f} GB of CUDA graphs by their number" if graphs else ""
    if options.max_loras is not None:
        return f"{each}{beside}, as was set"
    left = f"{room / 1e9:.2f} of the engine's {own / 1e9:.1f} GB are for them"
    if count * slot + graphs > room:
        return f"{each}{beside}, the fewest: {left}"
    limit = f", and more than {most} are never chosen" if count == most else ""
    return f"{each}{beside}: {left}{limit}"


def _named(count: int) -> str:
    return f"{count} slot{'' if count == 1 else 's'} for adapters"
