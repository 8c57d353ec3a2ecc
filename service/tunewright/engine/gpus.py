"""Reads from NVIDIA's driver which GPUs there are, through NVML (nvidia-ml-py). Without a driver it raises NoDriver.

vLLM needs NVML too: where it does not work, no engine runs on a GPU, even if there are device files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class NoDriver(Exception):
    """NVML cannot be used; the message is NVML's: no library, no driver loaded, another version, no permission."""


@dataclass(frozen=True)
class GpuState:
    """The present use of a GPU. What the driver does not report of it is None."""

    index: int
    uuid: str
    name: str
    memory_total: int
    """Bytes."""
    memory_used: int
    utilization: float | None
    """Share of the last interval of the driver (up to a second) in which a kernel ran."""
    watts: float | None
    celsius: float | None


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
        return _text(nvml.nvmlDeviceGetName(handle)), int(nvml.nvmlDeviceGetMemoryInfo(handle).total)


def gpu_states() -> list[GpuState]:
    """The GPUs that the driver manages; one that is lost is left out. Raises NoDriver."""
    found = []
    with _driver() as nvml:
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                memory = nvml.nvmlDeviceGetMemoryInfo(handle)
                uuid, name = _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle))
            except nvml.NVMLError:
                continue
            rates = _asked(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
            milliwatts = _asked(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
            celsius = _asked(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
            found.append(
                GpuState(
                    index,
                    uuid,
                    name,
                    int(memory.total),
                    int(memory.used),
                    None if rates is None else rates.gpu / 100,
                    None if milliwatts is None else milliwatts / 1000,
                    None if celsius is None else float(celsius),
                )
            )
    return found


def _asked(nvml: Any, question: Any, *arguments: Any) -> Any:
    """The driver's answer; None where it has none for this GPU."""
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)  # bytes in older versions
