"""The progress of a job's process that asks for answers."""

from __future__ import annotations

import time
from collections.abc import Callable

from tunewright.jobs.folder import EventLog, JobFolder

_INTERVAL = 1.0
"""Seconds between two events."""


class AnswersProgress:
    """Writes how many of `total` are done as events, and beats."""

    def __init__(
        self,
        folder: JobFolder,
        events: EventLog,
        done: Callable[[], int],
        total: int = 0,
        phase: str = "answers",
    ) -> None:
        self._folder, self._events, self._done, self._phase = folder, events, done, phase
        self.total = total
        self.before = done()
        """What an earlier process has done."""
        self._began = self._told_at = time.monotonic()

    def tell(self, *, is_last: bool = False) -> None:
        now = time.monotonic()
        if now - self._told_at < _INTERVAL and not is_last:
            return
        self._told_at = now
        done = self._done()
        each = (now - self._began) / max(1, done - self.before)
        self._folder.beat()
        self._events.metrics(
            f"{self._phase} {done}/{self.total}",
            {
                "step": done,
                "total_steps": self.total,
                "phase": self._phase,
                "eta_seconds": round(each * max(0, self.total - done), 1),
            },
        )
