"""The devices of this machine, and which job or check uses each.

The devices that jobs hold are recorded in the store, so that a new scheduler finds them again. A check borrows a device
for as long as its process runs. Engines share devices with both: their part of a GPU's memory is set when they are
placed.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.store.store import Store

CPU = "cpu"


class Devices:
    """The devices that jobs may claim and checks may borrow."""

    def __init__(self, names: Sequence[str], store: Store) -> None:
        """`names`: `["cpu"]`, or `["cuda:0", ...]`."""
        self.names = list(names)
        self._store = store
        self._lent: set[str] = set()

    @property
    def on_gpu(self) -> bool:
        return self.names[0] != CPU

    def has(self, device: str) -> bool:
        """Whether a job may run on the device. Jobs that need no base run on the CPU of every machine, or have places
        of their own."""
        return not device.startswith("cuda:") or device in self.names

    def for_jobs(self) -> Sequence[str]:
        """Devices that a job may claim, in the order to try: jobs take the last first, since engines take the first."""
        return [name for name in reversed(self.names) if name not in self._lent]

    def lend_for_check(self, *, gpu: bool) -> str:
        """Lend a GPU that no job holds, where `gpu` is set and one is free; else the CPU."""
        held = {name for job in self._store.jobs.on_devices() for name in job.devices}
        free = [name for name in self.names if name != CPU and name not in held]
        device = free[0] if gpu and free else CPU
        self.lend(device)
        return device

    def lend(self, device: str) -> None:
        """Record that a check uses the device, so that no job claims it. The CPU is shared."""
        if device != CPU:
            self._lent.add(device)

    def give_back(self, device: str) -> None:
        self._lent.discard(device)


def visible_to(*devices: str) -> dict[str, str]:
    """Environment variables with which a process sees only these devices."""
    gpus = [device.removeprefix("cuda:") for device in devices if device.startswith("cuda:")]
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
