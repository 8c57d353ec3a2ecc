"""Progress of a job on stderr: a bar on a terminal, single lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

from ..types import JobEvent, JobProgress, Metrics, WorkRecord

# Time between two lines without a terminal while the status does not change.
LINE_SECONDS = 30.0
BAR_WIDTH = 24


@dataclass(slots=True)
class ProgressState:
    """The progress of a job: its last record, with the metrics of its events."""

    job_id: str = ""
    status: str = ""
    step: int | None = None
    total_steps: int | None = None
    phase: str | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None

    def take_event(self, event: JobEvent) -> None:
        """Use the metrics of an event. Events must come oldest first."""
        if (metrics := event.metrics) is None:
            return
        self._take(metrics)
        if metrics.tokens_per_second is not None:
            self.tokens_per_second = metrics.tokens_per_second

    def take_job(self, job: WorkRecord) -> None:
        """Use a record that is newer than the events before it."""
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
        """The finished share of all steps, 0 to 1; None while it is unknown."""
        if self.step is None or not self.total_steps:
            return None
        return min(max(self.step / self.total_steps, 0.0), 1.0)

    def parts(self) -> list[str]:
        """Step, share, phase, loss, tokens per second and time left, as far as they are known."""
        parts: list[str] = []
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
        """The id, the status and `parts` in one line."""
        return "  ".join([self.job_id, self.status, *self.parts()])

    def bar(self, columns: int) -> str:
        """The line with a bar, cut to `columns` characters."""
        done = round((self.fraction or 0.0) * BAR_WIDTH)
        bar = "[" + "#" * done + "-" * (BAR_WIDTH - done) + "]"
        return "  ".join([self.job_id, self.status, bar, *self.parts()])[: max(columns - 1, 1)]


class ProgressReporter:
    """Writes the progress of a job to a stream, by default stderr.

    On a terminal it is a bar, elsewhere a line at each change of status and every 30 seconds. Events of level warn and
    error get a line of their own.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._tty = self._stream.isatty()
        self._clock = clock
        self._state = ProgressState()
        self._shown_status = ""
        self._shown_at = 0.0
        self._bar_open = False

    def update(self, job: WorkRecord, events: Sequence[JobEvent]) -> None:
        """Show a newer record of the job and its new events, oldest first."""
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

    def server_unavailable(self, error: Exception) -> None:
        """On a terminal, show that the server does not answer. The next update replaces it."""
        if self._tty:
            self._clear()
            columns = shutil.get_terminal_size().columns
            self._write(plain(f"waiting for the server: {error}")[: max(columns - 1, 1)])
            self._bar_open = True

    def close(self) -> None:
        """Keep the last bar and move the cursor to the next line. May be called again."""
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
        except (OSError, ValueError):
            # A closed stderr must not end the wait for the job.
            self._tty = False


def plain(text: str) -> str:
    """Text of the server with every character that could control the terminal replaced by a space."""
    return "".join(character if character.isprintable() else " " for character in text)


def duration(seconds: float) -> str:
    """Seconds as 42s, 3m12s or 5h07m."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
