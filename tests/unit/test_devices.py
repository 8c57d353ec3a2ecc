"""Which GPUs there are and what they hold, with a stand-in for NVML."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tunewright.config import ProcessOptions
from tunewright.engine.devices import find_devices
from tunewright.engine.gpus import GpuState, NoDriver, gpu_states, memory_by_process
from tunewright.engine.usage import Usage


class FakeNvml:
    """The part of pynvml that is used. `gpus` has (pid, bytes or None) for each; None is a GPU that is lost."""

    class NVMLError(Exception):
        pass

    def __init__(self, gpus: list[list[tuple[int, int | None]] | None], broken: str | None = None) -> None:
        self._gpus = gpus
        self._broken = broken
        self.opened = 0
        self.inits = 0

    def nvmlInit(self) -> None:  # noqa: N802
        if self._broken is not None:
            raise self.NVMLError(self._broken)
        self.opened += 1
        self.inits += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        running = self._gpus[handle]
        if running is None:
            raise self.NVMLError("GPU is lost")
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in running]


class FakeStates(FakeNvml):
    """`gpus` has for each GPU what the driver reports: its index is its handle. What is None is not supported."""

    NVML_TEMPERATURE_GPU = 0

    def _of(self, handle: int, what: str) -> Any:
        gpu: dict[str, Any] | None = self._gpus[handle]  # type: ignore[assignment]
        if gpu is None or gpu.get(what) is None:
            raise self.NVMLError("not supported, or lost")
        return gpu[what]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        used, total = self._of(handle, "memory")
        return SimpleNamespace(used=used, total=total)

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:  # noqa: N802
        return f"GPU-{handle}".encode()

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return "H200"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=self._of(handle, "percent"), memory=1)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        return int(self._of(handle, "milliwatts"))

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802
        return int(self._of(handle, "celsius"))


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def driver(monkeypatch: pytest.MonkeyPatch, *gpus: Any, broken: str | None = None) -> FakeNvml:
    fake = FakeNvml(list(gpus), broken)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_the_devices_are_the_drivers_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = driver(monkeypatch, [], [])
    assert find_devices(ProcessOptions()) == ["cuda:0", "cuda:1"]
    assert find_devices(ProcessOptions(device="cuda")) == ["cuda:0", "cuda:1"]
    assert find_devices(ProcessOptions(device="cpu")) == ["cpu"]
    assert fake.opened == 0, "nothing is kept open"


@pytest.mark.parametrize(
    ("allowed", "devices"),
    [("1", ["cuda:1"]), ("1,0", ["cuda:1", "cuda:0"]), ("GPU-8ac5", ["cuda:GPU-8ac5"]), ("", ["cpu"]), ("-1", ["cpu"])],
)  # fmt: skip
def test_the_variable_says_which_of_them(
    monkeypatch: pytest.MonkeyPatch, allowed: str, devices: list[str]
) -> None:
    driver(monkeypatch, [], [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert find_devices(ProcessOptions()) == devices


def test_without_a_driver_it_is_the_cpu_whatever_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, broken="Driver Not Loaded")
    assert find_devices(ProcessOptions()) == ["cpu"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert find_devices(ProcessOptions()) == ["cpu"]


@pytest.mark.parametrize(
    ("gpus", "broken", "allowed", "why"),
    [
        ([], "NVML Shared Library Not Found", None, "the driver cannot be used: NVML Shared Library Not Found"),
        ([], None, None, "the driver lists none"),
        ([[]], None, "-1", "CUDA_VISIBLE_DEVICES allows none"),
    ],
)  # fmt: skip
def test_where_gpus_are_asked_for_the_refusal_says_why_there_are_none(
    monkeypatch: pytest.MonkeyPatch, gpus: list[Any], broken: str | None, allowed: str | None, why: str
) -> None:
    driver(monkeypatch, *gpus, broken=broken)
    if allowed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    with pytest.raises(RuntimeError) as refused:
        find_devices(ProcessOptions(device="cuda"))
    assert str(refused.value) == f"--device cuda: no NVIDIA GPU was found ({why})"


def test_the_real_library_says_so_where_there_is_no_driver() -> None:
    try:
        memory_by_process()
    except NoDriver:
        return
    pytest.skip("there is a driver")


def test_the_memory_of_a_process_is_added_up_as_far_as_the_driver_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = driver(monkeypatch, [(12, 100), (13, None)], None, [(12, 28), (14, 0)])
    assert memory_by_process() == {12: 128, 14: 0}
    assert fake.opened == 0


def test_the_state_of_each_gpu_has_what_the_driver_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    full = {"memory": (3, 10), "percent": 25, "milliwatts": 70500, "celsius": 41}
    fake = FakeStates([full, None, {"memory": (1, 10)}])  # type: ignore[list-item]
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert gpu_states() == [
        GpuState(0, "GPU-0", "H200", 10, 3, 0.25, 70.5, 41.0),
        GpuState(2, "GPU-2", "H200", 10, 1, None, None, None),
    ]
    assert fake.opened == 0
    driver(monkeypatch, broken="Driver Not Loaded")
    with pytest.raises(NoDriver):
        gpu_states()


def test_a_look_at_the_usage_asks_the_driver_once_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = driver(monkeypatch, [(12, 100)])
    usage = Usage()
    assert fake.inits == 0
    assert (usage._on_gpus, usage._on_gpus) == ({12: 100}, {12: 100})
    assert fake.inits == 1
    driver(monkeypatch, broken="Driver Not Loaded")
    assert Usage()._on_gpus == {}
