"""How many sequences an engine runs at once: what was asked for, or vLLM's default."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.engine.arguments import last_given
from tunewright.engine.command import EngineOptions
from tunewright.engine.gpus import NoDriver, gpu_memory

_ARGUMENT = "--max-num-seqs"
_ON_CPU, _ON_GPU, _ON_LARGE_GPU = 128, 256, 1024
_LARGE_GPU = 70 * 2**30


def most_sequences(options: EngineOptions, vllm_args: Sequence[str], *, is_deployment: bool) -> int:
    """The `max_num_seqs` of an engine. `vllm_args` are the operator's, over which the options of a deployment go."""
    given = _given(vllm_args)
    asked = (options.max_num_seqs or given) if is_deployment else (given or options.max_num_seqs)
    return asked or _default(options.device)


def _given(arguments: Sequence[str]) -> int | None:
    value = last_given(arguments, _ARGUMENT)
    return int(value) if value is not None and value.isdecimal() else None


def _default(device: str) -> int:
    """vLLM's own default (0.32, `EngineArgs.get_batch_defaults`), which no route of its server tells."""
    if not device.startswith("cuda:"):
        return _ON_CPU
    try:
        name, memory = gpu_memory(device.removeprefix("cuda:"))
    except NoDriver:
        return _ON_GPU
    return _ON_LARGE_GPU if memory >= _LARGE_GPU and "a100" not in name.lower() else _ON_GPU
