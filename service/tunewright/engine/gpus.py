"""What NVIDIA's driver says of the GPUs, through NVML (nvidia-ml-py). Works where there is no driver: then it says so.

vLLM asks NVML too: where that does not answer, no engine runs on a GPU, even if there are device files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class NoDriver(Exception):
    """NVML cannot be used; the message is its own: no library, no driver loaded, another version, no permission."""


@contextmanager
def _driver() -> Iterator[Any]:
    """NVML, for one look. It is not kept open: a driver may be replaced, and processes forked."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoDriver(str(error)) from error
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise NoDriver(str(error)) from error
    finally:
        pynvml.nvmlShutdown()


def gpu_count() -> int:
    """GPUs that the driver manages; their indices, as of `nvidia-smi -L`, are 0 and up. Raises NoDriver."""
    with _driver() as nvml:
        return int(nvml.nvmlDeviceGetCount())


def memory_by_process() -> dict[int, int]:
    """Bytes of GPU memory that each process id has, over all GPUs. A process whose share the driver does not tell (in
    a container, say) is left out, and so is a GPU that is lost. Raises NoDriver."""
    found: dict[int, int] = {}
    with _driver() as nvml:
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                running = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByIndex(index))
            except nvml.NVMLError:
                continue
            for process in running:
                if process.usedGpuMemory is not None:
                    found[process.pid] = found.get(process.pid, 0) + process.usedGpuMemory
    return found
