"""Reads from NVIDIA's driver which GPUs there are, through NVML (nvidia-ml-py). Without a driver it raises NoDriver.

vLLM needs NVML too: where it does not work, no engine runs on a GPU, even if there are device files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class NoDriver(Exception):
    """NVML cannot be used; the message is NVML's: no library, no driver loaded, another version, no permission."""


@contextmanager
def _driver() -> Iterator[Any]:
    """NVML for one query. It is not kept open, since the driver may be replaced and processes forked."""
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
    """Number of GPUs that the driver manages; their indices, as in `nvidia-smi -L`, start at 0. Raises NoDriver."""
    with _driver() as nvml:
        return int(nvml.nvmlDeviceGetCount())


def memory_by_process() -> dict[int, int]:
    """Bytes of GPU memory by process id, over all GPUs. A process whose memory the driver does not report (in a
    container, say) is left out, and so is a GPU that is lost. Raises NoDriver."""
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


def gpu_memory(device: str) -> tuple[str, int]:
    """(name, bytes of memory) of a GPU, by its index or its UUID. Raises NoDriver."""
    with _driver() as nvml:
        handle = (
            nvml.nvmlDeviceGetHandleByIndex(int(device))
            if device.isdecimal()
            else nvml.nvmlDeviceGetHandleByUUID(device)
        )
        name = nvml.nvmlDeviceGetName(handle)  # bytes in older versions
        memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
        return name.decode() if isinstance(name, bytes) else str(name), memory
