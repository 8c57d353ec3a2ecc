"""A job's progress on a terminal: a bar where there is one, a line now and then where there is not."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

from ..types import JobEvent, JobProgress, Metrics, WorkRecord

LINE_SECONDS = 30.0  # between two lines where there is no terminal and the status stays the same
BAR_WIDTH = 24


@dataclass(slots=True)
class ProgressState:
    """What is known of a job's progress: its last record, filled up from its events."""

    job_id: str = ""
    status: str = ""
    step: int | None = None
    total_steps: int | None = None
    phase: str | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None

    def take_event(self, event: JobEvent) -> None:
        """Learn from an event; events come oldest first."""
        if (metrics := event.metrics) is None:
            return
        self._take(metrics)
        if metrics.tokens_per_second is not None:
            self.tokens_per_second = metrics.tokens_per_second

    def take_job(self, job: WorkRecord) -> None:
        """Learn from a record, which is newer than the events read before it."""
        self.job_id, self.status = job.id, str(job.status)
        if (now := job.progress) is not None:
            self._take(now)
        if job.is_final:
            self.phase = self.eta_seconds = None

    def _take(self, now: Metrics | JobProgress) -> None:
        self.step = self.step if now.step is None else now.step
        self.total_steps = self.total_steps if now.total_steps is None else now.total_steps
        self.phase = self.phase if now.phase is None else now.phase
        self.loss = self.loss if now.train_loss is None else now.train_loss
        self.eta_seconds = self.eta_seconds if now.eta_seconds is None else now.eta_seconds

    @property
    def fraction(self) -> float | None:
        """The share of all steps that is done, 0 to 1; None while it is not known."""
        if self.step is None or not self.total_steps:
            return None
        return min(max(self.step / self.total_steps, 0.0), 1.0)

    def parts(self) -> list[str]:
        """Step, share, phase, loss, speed and time left, as far as they are known."""
        parts = []
        if self.step is not None and self.total_steps:
            parts.append(f"{self.step}/{self.total_steps}")
        if (fraction := self.fraction) is not None:
            parts.append(f"{fraction:.0%}")
        if self.phase is not None:
            parts.append(self.phase)
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:,.0f} tok/s")
        if self.eta_seconds is not None:
            parts.append(f"ETA {duration(self.eta_seconds)}")
        return parts

    def line(self) -> str:
        """All of it in one line."""
        return "  ".join([self.job_id, self.status, *self.parts()])

    def bar(self, columns: int) -> str:
        """The line with a bar, cut to the terminal's width."""
        done = round((self.fraction or 0.0) * BAR_WIDTH)
        bar = "[" + "#" * done + "-" * (BAR_WIDTH - done) + "]"
        return "  ".join([self.job_id, self.status, bar, *self.parts()])[: max(columns - 1, 1)]


class ProgressReporter:
    """Writes a job's progress to a stream (stderr unless told otherwise): a bar where it is a terminal, else
    a line at each change of status and every 30 seconds. Warnings and errors among the events are shown
    too."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._tty = self._stream.isatty()
        self._clock = clock
        self._state = ProgressState()
        self._shown_status = ""
        self._shown_at = 0.0
        self._bar_open = False

    def update(self, job: WorkRecord, events: Sequence[JobEvent]) -> None:
        """Show a newer record of the job and the events that are new since the last one, oldest first."""
        for event in events:
            self._state.take_event(event)
            if event.level in ("warn", "error"):
                self._write_line(f"{job.id}  {event.level}: {event.message}")
        self._state.take_job(job)
        if self._tty:
            self._clear()
            columns = shutil.get_terminal_size().columns
            self._write(plain(self._state.bar(columns)))
            self._bar_open = True
        elif self._state.status != self._shown_status or self._clock() - self._shown_at >= LINE_SECONDS:
            self._write_line(self._state.line())
            self._shown_status, self._shown_at = self._state.status, self._clock()

    def trouble(self, error: Exception) -> None:
        """Say once, on a terminal, that the server is not answering; the next update takes its place."""
        if self._tty:
            self._clear()
            columns = shutil.get_terminal_size().columns
            self._write(plain(f"waiting for the server: {error}")[: max(columns - 1, 1)])
            self._bar_open = True

    def close(self) -> None:
        """Leave the last bar standing and the cursor on a fresh line. May be called twice."""
        if self._bar_open:
            self._write("\n")
            self._bar_open = False

    def _write_line(self, text: str) -> None:
        self._clear()
        self._write(plain(text) + "\n")

    def _clear(self) -> None:
        if self._bar_open:
            self._write("\r\x1b[K")
            self._bar_open = False

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # a closed stderr must not end the wait for a job
            self._tty = False


def plain(text: str) -> str:
    """A server's text without what could steer the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def duration(seconds: float) -> str:
    """Seconds as 42s, 3m12s or 5h07m."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
