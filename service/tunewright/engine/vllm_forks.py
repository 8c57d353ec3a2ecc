"""vLLM's processes on the CPU start as forks of its server, as they do on a GPU.

On the CPU vLLM starts its engine and its worker as new interpreters, which import torch and vLLM again: two thirds of
an engine's start. It does so because OpenMP reads from the environment, once, as it is loaded, how many threads there
are and on which cores they run. A fork inherits both from the thread that makes it, so they are set there.

vLLM's own rule for forks holds: the parent may say how many threads there will be, but computes nothing with them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"


def fork_processes() -> None:
    """Let vLLM fork in this process and its children where the environment asks for that, unless another OpenMP is
    preloaded: it takes the cores of its threads from the environment alone."""
    if os.environ.get(_METHOD) != "fork" or "omp" in os.environ.get("LD_PRELOAD", ""):
        return
    try:
        from vllm.platforms.cpu import CpuPlatform
        from vllm.utils.ompmultiprocessing import OMPProcessManager
    except ImportError:  # a version of vLLM that starts its processes in another way
        return
    keep_method(CpuPlatform)
    set_threads_before_forks(OMPProcessManager)


def keep_method(platform: Any) -> None:
    """Undo in `platform`, vLLM's class CpuPlatform, that checking the options changes how processes are started."""
    original = platform.check_and_update_config.__func__
    if hasattr(original, "corrected"):
        return

    def corrected(cls: Any, vllm_config: Any) -> None:
        original(cls, vllm_config)
        os.environ[_METHOD] = "fork"

    corrected.corrected = True  # type: ignore[attr-defined]
    platform.check_and_update_config = classmethod(corrected)


def set_threads_before_forks(manager: Any) -> None:
    """Correct `manager`, vLLM's class OMPProcessManager, so that a worker that is forked while its variables are set
    has the cores and the number of threads that they state."""
    original = manager.configure_omp_envs
    if hasattr(original, "corrected"):
        return

    @contextmanager
    def corrected(self: Any, rank: int, local_rank: int) -> Iterator[None]:
        with original(self, rank, local_rank):
            if self.skip_setup:
                yield
            else:
                with _threads_on(self.cpu_lists[local_rank]):
                    yield

    corrected.corrected = True  # type: ignore[attr-defined]
    manager.configure_omp_envs = corrected


@contextmanager
def _threads_on(cores: list[int]) -> Iterator[None]:
    """Until the end, this thread runs on these cores, and so do the threads of a process that it forks: one a core."""
    import torch

    allowed, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, allowed)
