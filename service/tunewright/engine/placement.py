"""Chooses the device of each engine, and its share of the device's memory. Only computes; starts nothing.

Bases are distributed over the devices at start; deployments are placed one by one, beside the existing engines. On a
GPU the shares of all engines together have a limit; on the CPU a deployment must fit into the free memory. An engine
that is split over several GPUs (tensor parallelism) has the same share of each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tunewright.config import ServingOptions, Settings
from tunewright.engine.arguments import last_given
from tunewright.engine.command import EngineOptions
from tunewright.errors import InvalidRequest

MOST_OF_A_GPU = 0.95
"""Largest share of a GPU's memory for all its engines together: the driver and the processes need some too."""
DEFAULT_SHARE = 0.3
LEAST_SHARE = 0.02
PROCESS_BYTES = 2**30
"""Memory that a vLLM process needs on the CPU in addition to weights and KV cache."""
_LEAST_KV_CACHE = 16 * 2**20
_CLOSE = 1e-6


def options_of_bases(settings: Settings, devices: Sequence[str]) -> dict[str, EngineOptions]:
    """The options of the service's bases, by name. Raises InvalidRequest where they are to be split over more GPUs than
    there are."""
    size = settings.serving.tensor_parallel_size
    if any(last_given(settings.serving.vllm_args, name) for name in ("--tensor-parallel-size", "-tp")):
        raise InvalidRequest(
            "--vllm-arg: an engine is split over several GPUs by --tensor-parallel-size of the service, which gives it "
            "the GPUs."
        )
    refusal = _not_split(size, devices)
    if refusal is not None:
        raise InvalidRequest(f"--tensor-parallel-size {size}: {refusal}.")
    groups = [devices[first : first + size] for first in range(0, len(devices) - size + 1, size)]
    placed = [(base.name, groups[i % len(groups)]) for i, base in enumerate(settings.models.bases)]
    on_device: dict[str, int] = {}
    for _, group in placed:
        on_device[group[0]] = on_device.get(group[0], 0) + 1
    return {
        name: _options(
            settings.serving,
            {},
            group,
            share=settings.serving.gpu_memory_utilization / on_device[group[0]],
            weights=None,
        )
        for name, group in placed
    }


def place(
    serving: ServingOptions,
    devices: Sequence[str],
    model: str,
    asked: Mapping[str, Any],
    others: Mapping[str, EngineOptions],
    *,
    weights: int | None,
    free_memory: int,
) -> EngineOptions:
    """The options of a new deployment beside `others`: all other engines, by the names of their models.

    `asked`: fields of `EngineOptions`, with a `tensor_parallel_size` for `other_devices`; `device` may be "auto".
    `weights`: size of the model's files in bytes, if known.
    `free_memory`: bytes of the machine's memory that are free and not reserved. Raises InvalidRequest, with the
    numbers, where the deployment does not fit, and where the device does not exist.
    """
    device = asked.get("device", "auto")
    if device not in ("auto", *devices):
        raise InvalidRequest(
            f"There is no device {device} here: {', '.join(devices)}.", param="engine.device"
        )
    size = asked.get("tensor_parallel_size", serving.tensor_parallel_size if device == "auto" else 1)
    refusal = _not_split(size, devices)
    if refusal is not None:
        raise InvalidRequest(
            f"The model cannot be split over {size} GPUs: {refusal}.", param="engine.tensor_parallel_size"
        )
    emptiest = sorted(devices, key=lambda one: -_left(one, others))  # of equals the first
    if device == "auto":
        device = emptiest[0]
    group = [device, *(one for one in emptiest if one != device)][:size]
    asked = {name: value for name, value in asked.items() if name != "tensor_parallel_size"}
    if device.startswith("cuda"):
        if "kv_cache_memory" in asked:
            raise InvalidRequest(
                f"kv_cache_memory is for the CPU; on {device} ask for a gpu_memory_utilization, which has the KV cache "
                "in it.",
                param="engine.kv_cache_memory",
            )
        fullest = min(group, key=lambda one: _left(one, others))
        share = _share(fullest, asked.get("gpu_memory_utilization"), devices, others)
        return _options(serving, asked, group, share=share, weights=weights)
    if "gpu_memory_utilization" in asked:
        raise InvalidRequest(
            "gpu_memory_utilization is for GPUs; on the CPU ask for a kv_cache_memory.",
            param="engine.gpu_memory_utilization",
        )
    options = _options(serving, asked, group, share=None, weights=weights)
    _refuse_unfit(model, options, free_memory)
    return options


def still_fits(options: EngineOptions, devices: Sequence[str], others: Mapping[str, EngineOptions]) -> bool:
    """Whether a deployment may stay where it was placed. Devices and bases may have changed since."""
    share = options.gpu_memory_utilization or 0.0
    return all(one in devices and share <= _left(one, others) + _CLOSE for one in options.devices)


def needed_on_cpu(options: EngineOptions) -> int:
    """Bytes of the machine's memory that an engine needs; 0 for one on a GPU."""
    if options.on_gpu:
        return 0
    return (options.weights_bytes or 0) + (options.kv_cache_memory or 0) + PROCESS_BYTES


def _options(
    serving: ServingOptions,
    asked: Mapping[str, Any],
    devices: Sequence[str],
    *,
    share: float | None,
    weights: int | None,
) -> EngineOptions:
    device, *other_devices = devices
    on_gpu = device.startswith("cuda")
    defaults: dict[str, Any] = {
        "max_loras": serving.slots(on_gpu=on_gpu),
        "max_cpu_loras": serving.max_cpu_loras,
        "max_lora_rank": serving.max_lora_rank,
    }
    if not on_gpu:
        defaults["kv_cache_memory"] = int(serving.kv_cache_memory)
    fixed = {
        "device": device,
        "other_devices": other_devices,
        "gpu_memory_utilization": share if on_gpu else None,
        "enforce_eager": asked.get("enforce_eager", False) or not on_gpu,
        "weights_bytes": weights,
    }
    return EngineOptions(**{**defaults, **asked, **fixed})


def _not_split(size: int, devices: Sequence[str]) -> str | None:
    """Why a model cannot be split over so many of the devices; None if it can."""
    gpus = sum(device.startswith("cuda") for device in devices)
    if size == 1 or size <= gpus:
        return None
    return f"this machine has {gpus}" if gpus else "this machine has none, and the CPU is one device"


def _left(device: str, others: Mapping[str, EngineOptions]) -> float:
    """The share of a device's memory that is left for one more engine."""
    return MOST_OF_A_GPU - sum(share for _, share in _shares(device, others))


def _shares(device: str, others: Mapping[str, EngineOptions]) -> list[tuple[str, float]]:
    """Names of the engines on a device, and their shares of its memory."""
    return [
        (name, one.gpu_memory_utilization or 0.0) for name, one in others.items() if device in one.devices
    ]


def _fitting(left: float) -> float:
    """The largest share that fits, rounded down to thousandths."""
    return math.floor((left + _CLOSE) * 1000) / 1000


def _share(
    device: str, asked: float | None, devices: Sequence[str], others: Mapping[str, EngineOptions]
) -> float:
    left = _left(device, others)
    share = min(DEFAULT_SHARE, _fitting(left)) if asked is None else asked
    if share >= LEAST_SHARE and share <= left + _CLOSE:
        return share
    who = (
        ", ".join(f"{name} has {taken:.3g}" for name, taken in _shares(device, others)) or "no engine has any"
    )
    rest = max(0.0, left)
    advice = f"Ask for {_fitting(rest):.3g} or less, or delete" if rest >= LEAST_SHARE else "Delete"
    better = [
        f"{other} has {_left(other, others):.3g} left"
        for other in devices
        if other != device and _left(other, others) > rest + _CLOSE
    ]
    raise InvalidRequest(
        f"A share of {asked or LEAST_SHARE:.3g} of {device} does not fit: {who}, and of the {MOST_OF_A_GPU} for all "
        f"engines {rest:.3g} is left. {advice} a deployment, or start the service with a smaller "
        f"--gpu-memory-utilization{' (' + ', '.join(better) + ')' if better else ''}.",
        param="engine.gpu_memory_utilization",
        code="does_not_fit",
    )


def _refuse_unfit(model: str, options: EngineOptions, free: int) -> None:
    needed = needed_on_cpu(options)
    if needed <= free:
        return
    weights, cache = options.weights_bytes or 0, options.kv_cache_memory or 0
    room = free - weights - PROCESS_BYTES
    advice = (
        f"ask for a kv_cache_memory of {room // 2**20}MiB or less, or delete a deployment"
        if room >= _LEAST_KV_CACHE
        else "delete a deployment, or use a machine with more memory"
    )
    raise InvalidRequest(
        f"{model} does not fit: it needs {_gib(needed)} ({_gib(weights)} for weights, {_gib(cache)} for the KV cache, "
        f"{_gib(PROCESS_BYTES)} for the process), and {_gib(max(0, free))} of the machine's memory are free and not "
        f"reserved: {advice}.",
        param="engine.kv_cache_memory",
        code="does_not_fit",
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
