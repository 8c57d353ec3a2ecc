"""Writes the progress of an export as events, and records the details of its phases."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tunewright.jobs.folder import EventLog, JobFolder

_EVENT_INTERVAL = 1.0
"""Least seconds between two events about the same phase."""


class Progress:
    """Counts steps over all phases: modules combined, tensors merged, layers quantized, passes measured."""

    def __init__(self, folder: JobFolder, events: EventLog) -> None:
        self._folder = folder
        self._events = events
        self._began = self._last_event_at = time.monotonic()
        self._last_event: tuple[str, int] | None = None
        self._totals: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self.details: dict[str, dict[str, Any]] = {}

    def expect(self, phase: str, steps: int) -> None:
        """Announce a phase and its expected steps. Called for all phases in their order, before the first begins."""
        self._totals[phase] = steps

    @contextmanager
    def phase(self, phase: str, text: str) -> Iterator[dict[str, Any]]:
        """Run a phase. Yields its details in the report, to which the caller adds; `seconds` is added at the end."""
        self._events.message(text)
        self._began = time.monotonic()
        details = self.details[phase] = {}
        yield details
        details["seconds"] = round(time.monotonic() - self._began, 1)
        self.at(phase, self._totals[phase], self._totals[phase])

    def at(self, phase: str, done: int, total: int) -> None:
        """Record that `done` of `total` steps of the phase are done. `total` replaces the number that was expected."""
        self._folder.beat()
        self._totals[phase], self._done[phase] = total, done
        now = time.monotonic()
        if (phase, done) == self._last_event or (
            now - self._last_event_at < _EVENT_INTERVAL and done < total
        ):
            return
        self._last_event, self._last_event_at = (phase, done), now
        step, steps = sum(self._done.values()), sum(self._totals.values())
        left = (now - self._began) / done * (total - done) if done else None
        self._events.metrics(
            f"{phase} {done}/{total}",
            {
                "step": step,
                "total_steps": steps,
                "phase": phase,
                "eta_seconds": None if left is None else round(left, 1),
                "memory_bytes": peak_memory(),
            },
        )


def peak_memory() -> int:
    """Peak resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
