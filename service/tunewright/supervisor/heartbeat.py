"""Heartbeats: a process touches a file about once a second, and an observer watches whether the file changes.

A process that hangs, or is stopped, does not touch it. Imports nothing of the rest of the service.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PERIOD = 1.0
"""Approximate seconds between two beats."""
START_ALLOWANCE = 300.0
"""Seconds that a process has for its first beat in addition to the limit: imports from a cold disk are slow."""
_OBSERVER_GAP = 5.0
"""Seconds between two checks from which on the observer itself was stopped, or the machine slept."""


def beat(path: Path) -> None:
    """Touch the heartbeat. Errors are ignored: a full or read-only disk is no reason for the process to end."""
    with suppress(OSError):
        path.touch(mode=0o600)


class HeartbeatWatch:
    """Measures how long a process has been silent, by the observer's monotonic clock and only while the observer ran.

    The file's own time is not compared with a clock, since the system's may be set.
    """

    def __init__(self, path: Path, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`limit`: seconds of silence after which the process counts as hung."""
        self.path = path
        self.limit = limit
        self._clock = clock
        self.begin()

    def begin(self) -> None:
        """Begin again, for a new process."""
        self._last = self._read()
        self._has_beaten = False
        self._silent = 0.0
        self._checked_at = self._clock()

    def hangs(self) -> bool:
        """Check the heartbeat, which must be done every few seconds. Returns whether the limit is exceeded."""
        now = self._clock()
        gap, self._checked_at = now - self._checked_at, now
        found = self._read()
        if found != self._last:
            self._last, self._has_beaten = found, True
            self._silent = 0.0
        elif gap > _OBSERVER_GAP:
            self._silent = 0.0  # the process may not have run either, so its time begins again
        else:
            self._silent += gap
        if self._silent <= self.limit + (0.0 if self._has_beaten else START_ALLOWANCE):
            return False
        if self._can_be_written():
            return True
        self._silent = 0.0  # no beat was possible, so the silence means nothing
        return False

    def _read(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _can_be_written(self) -> bool:
        """Whether a beat would be visible: on a read-only disk, or a full one without the file, it is not."""
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
