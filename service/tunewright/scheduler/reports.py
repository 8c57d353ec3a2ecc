"""Takes what trainers report into the store, each line exactly once and each step once, and tells how they ended."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from tunewright.jobs.folder import JobFolder
from tunewright.store.records import Job
from tunewright.store.store import Store


def take_in_events(store: Store, job: Job, folder: JobFolder) -> None:
    """Read on from the job's offset. A resumed trainer repeats steps since its checkpoint: those are passed over."""
    lines, offset = folder.read_events(job.events_offset)
    if offset == job.events_offset:
        return
    events: list[dict[str, Any]] = []
    last_step, progress = job.last_step, None
    for line in lines:
        if line["type"] == "metrics":
            data = line["data"]
            if data["step"] <= last_step:
                continue
            last_step, progress = data["step"], data
        events.append(line)
    store.jobs.take_in(
        job.id,
        offset=job.events_offset,
        new_offset=offset,
        events=events,
        progress=progress,
        last_step=last_step,
    )


def exit_words(code: int | None) -> str:
    """How a process ended."""
    if code is None:
        return "an unknown exit code"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def hint(how: str, advice: str) -> str:
    """What may be done about a process that ended so; begins a sentence of its own, or is empty."""
    if how != exit_words(-signal.SIGKILL):
        return ""
    return f". That signal mostly comes from the system, when the machine's memory runs out: {advice}"


def last_line(log_file: Path) -> str:
    """Of a child process's log."""
    try:
        lines = log_file.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1][:300] if lines else "its log is empty"
