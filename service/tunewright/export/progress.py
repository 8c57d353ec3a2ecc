"""How far an export is, told as events, with what its phases took."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tunewright.jobs.folder import EventLog, JobFolder

_TELL_EVERY = 1.0
"""Seconds between two events about the same phase."""


class Progress:
    """Counts steps over all phases: modules combined, tensors merged, layers quantized, passes measured."""

    def __init__(self, folder: JobFolder, events: EventLog) -> None:
        self._folder = folder
        self._events = events
        self._began = self._told_at = time.monotonic()
        self._told: tuple[str, int] | None = None
        self._totals: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self.details: dict[str, dict[str, Any]] = {}

    def expect(self, phase: str, steps: int) -> None:
        """Phases in their order, before the first begins."""
        self._totals[phase] = steps

    @contextmanager
    def phase(self, phase: str, text: str) -> Iterator[dict[str, Any]]:
        """The details that are told of it in the end: `seconds` and what is put in."""
        self._events.message(text)
        self._began = time.monotonic()
        details = self.details[phase] = {}
        yield details
        details["seconds"] = round(time.monotonic() - self._began, 1)
        self.at(phase, self._totals[phase], self._totals[phase])

    def at(self, phase: str, done: int, total: int) -> None:
        """So many steps of the phase are done, of so many: its real number, where another was expected."""
        self._folder.beat()
        self._totals[phase], self._done[phase] = total, done
        now = time.monotonic()
        if (phase, done) == self._told or (now - self._told_at < _TELL_EVERY and done < total):
            return
        self._told, self._told_at = (phase, done), now
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
    """Bytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
