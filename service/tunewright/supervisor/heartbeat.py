"""Heartbeats: a process that works touches a file about once a second; another one sees whether the file changes.

A process that hangs, or is stopped, does not touch it. Imports nothing of the service.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PERIOD = 1.0
"""Seconds between two beats, about."""
START_ALLOWANCE = 300.0
"""Seconds that a process is given for its first beat, beside the limit: imports from a cold disk take a while."""
_AWAY = 5.0
"""Seconds between two looks, after which the observer itself did not run: it was stopped, or the machine slept."""


def beat(path: Path) -> None:
    """Touch the heartbeat. A file that cannot be written (a full or read-only disk) is no reason to end."""
    with suppress(OSError):
        path.touch(mode=0o600)


class HeartbeatWatch:
    """How long one process has been silent, by the observer's monotonic clock and only while the observer ran.

    The time of the file itself is not compared with any clock: the system's may be set.
    """

    def __init__(self, path: Path, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`limit`: seconds of silence after which the process hangs."""
        self.path = path
        self.limit = limit
        self._clock = clock
        self.begin()

    def begin(self) -> None:
        """Another process beats from now on."""
        self._last = self._read()
        self._has_beaten = False
        self._silent = 0.0
        self._looked_at = self._clock()

    def hangs(self) -> bool:
        """Look, which must happen more often than every few seconds. Whether the limit is over."""
        now = self._clock()
        gap, self._looked_at = now - self._looked_at, now
        found = self._read()
        if found != self._last:
            self._last, self._has_beaten = found, True
            self._silent = 0.0
        elif gap > _AWAY:
            self._silent = 0.0  # the process may not have run either, and gets its whole time again
        else:
            self._silent += gap
        if self._silent <= self.limit + (0.0 if self._has_beaten else START_ALLOWANCE):
            return False
        if self._can_be_written():
            return True
        self._silent = 0.0  # silence says nothing where nobody could beat
        return False

    def _read(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _can_be_written(self) -> bool:
        """Whether a beat would be seen: on a read-only disk, or a full one without the file, it is not."""
        try:
            status = self.path.stat()
            os.utime(self.path, ns=(status.st_atime_ns, status.st_mtime_ns))
        except FileNotFoundError:
            try:
                self.path.touch(mode=0o600)
                self.path.unlink()
            except OSError:
                return False
        except OSError:
            return False
        return True
