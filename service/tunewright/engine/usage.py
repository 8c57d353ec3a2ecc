"""Current use of the machine's and the GPUs' memory by engines."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import psutil

from tunewright.engine.gpus import NoDriver, memory_by_process
from tunewright.supervisor.process import GroupRecord


class Usage:
    """The memory of the processes that exist now. The driver is queried at most once, and only for `device_memory`."""

    def __init__(self) -> None:
        self._groups: dict[int, list[int]] = {}
        for pid in psutil.pids():
            try:
                self._groups.setdefault(os.getpgid(pid), []).append(pid)
            except (ProcessLookupError, PermissionError):
                continue

    def memory(self, record: Path) -> int | None:
        """Resident bytes of all processes of the recorded group; None where it does not run."""
        return _sum([_resident(pid) for pid in self._pids(record)])

    def device_memory(self, record: Path) -> int | None:
        """Bytes of GPU memory of the recorded group; None where it does not run, or the driver does not report them."""
        return _sum([self._on_gpus.get(pid) for pid in self._pids(record)])

    def _pids(self, record: Path) -> list[int]:
        group = GroupRecord.read(record)
        return self._groups.get(group.group, []) if group and group.watcher.is_alive() else []

    @functools.cached_property
    def _on_gpus(self) -> dict[int, int]:
        try:
            return memory_by_process()
        except NoDriver:
            return {}


def _resident(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def _sum(parts: list[int | None]) -> int | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known else None
