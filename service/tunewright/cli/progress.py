"""Shows the progress of a job: a bar at a terminal, lines in a pipe, events as JSON lines for programs."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column
from rich.text import Text

from tunewright.cli.output import Output, duration, plain
from tunewright_client import JobEvent, Metrics, WaitTimeoutError

R = TypeVar("R")

POLL_SECONDS = 0.5
CHECK_SECONDS = 3.0
LINE_SECONDS = 10.0
"""Seconds between two lines of numbers where there is no terminal."""


class View(Protocol):
    """Shows a job's events. Called once with each event, oldest first."""

    def __call__(self, event: JobEvent) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def watch_job(
    wait: Callable[..., R],
    job_id: str,
    on_event: Callable[[JobEvent], None],
    check: Callable[[], None] | None = None,
) -> R:
    """Wait until a job has succeeded, and call `on_event` once with each of its events.

    `wait` is the SDK's method for the kind of job, such as `client.jobs.wait`. While the server cannot be reached, it
    waits without limit; `check` is called every few seconds, and may raise to stop that. Raises JobFailedError,
    JobCancelledError, NotFoundError, and what `check` raises.
    """
    seen: set[str] = set()

    def new(event: JobEvent) -> None:
        if event.id not in seen:
            seen.add(event.id)
            on_event(event)

    while True:
        try:
            return wait(
                job_id,
                timeout=CHECK_SECONDS if check else None,
                poll_interval=POLL_SECONDS,
                on_event=new if check else on_event,
            )
        except WaitTimeoutError:
            if check is not None:
                check()


def view_for(out: Output, console: Console | None = None) -> View:
    """The view for this output: JSON lines, a bar or lines."""
    console = console or out.stderr
    if out.as_json:
        return JsonView(out)
    return BarView(console) if console.is_terminal else LineView(console)


class _Plain:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class JsonView(_Plain):
    """Prints each event as one line of JSON."""

    def __init__(self, out: Output) -> None:
        self._out = out

    def __call__(self, event: JobEvent) -> None:
        self._out.json(event)


class LineView(_Plain):
    """Prints each message on a line, and the first and last numbers, validation losses, and some numbers in between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown_at = 0.0

    def __call__(self, event: JobEvent) -> None:
        now = time.monotonic()
        metrics = event.metrics
        if metrics is not None:
            matters = metrics.valid_loss is not None or metrics.step == metrics.total_steps
            if not matters and now - self._shown_at < LINE_SECONDS:
                return
            self._shown_at = now
            line = "  ".join(p for p in (_steps(metrics), metrics.phase, _numbers(metrics, None)) if p)
        else:
            line = event.message if event.level == "info" else f"{event.level}: {event.message}"
        self._console.print(plain(line), soft_wrap=True)


class BarView:
    """Shows a progress bar, and prints warnings and errors above it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=40)),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),  # the width that the numbers leave
            TextColumn("{task.fields[numbers]}", markup=False, table_column=Column(no_wrap=True)),
            console=console,
            expand=True,
        )
        self._task = self._progress.add_task("waiting", total=None, numbers="")
        self._valid_loss: float | None = None

    def __call__(self, event: JobEvent) -> None:
        metrics = event.metrics
        if metrics is None:
            if event.level == "info":
                self._progress.update(self._task, description=plain(event.message))
            else:
                style = "red" if event.level == "error" else "yellow"
                self._progress.console.print(Text(plain(f"{event.level}: {event.message}"), style=style))
            return
        if metrics.valid_loss is not None:
            self._valid_loss = metrics.valid_loss
        numbers = "  ".join(p for p in (_steps(metrics), _numbers(metrics, self._valid_loss)) if p)
        self._progress.update(
            self._task,
            description=plain(metrics.phase or "training"),
            completed=metrics.step or 0,
            total=metrics.total_steps,
            numbers=numbers,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def _steps(metrics: Metrics) -> str:
    return f"{metrics.step}/{metrics.total_steps}" if metrics.step is not None and metrics.total_steps else ""


def _numbers(metrics: Metrics, last_valid: float | None) -> str:
    valid = metrics.valid_loss if metrics.valid_loss is not None else last_valid
    parts = []
    if metrics.train_loss is not None:
        parts.append(f"loss {metrics.train_loss:.3f}")
    if valid is not None:
        parts.append(f"valid {valid:.3f}")
    if metrics.tokens_per_second is not None:
        parts.append(f"{metrics.tokens_per_second:,.0f} tok/s")
    if metrics.eta_seconds is not None and metrics.step != metrics.total_steps:
        parts.append(f"ETA {duration(metrics.eta_seconds)}")
    return "  ".join(parts)
