"""Copies the events that a job's process has written into the store: each line exactly once, and each step once."""

from __future__ import annotations

from typing import Any

from tunewright.jobs.folder import JobFolder
from tunewright.store.records import Job
from tunewright.store.store import Store


def take_in_events(store: Store, job: Job, folder: JobFolder) -> None:
    """Store the events behind the job's offset. A resumed process repeats the steps since its checkpoint: those are
    skipped."""
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
        job,
        new_offset=offset,
        events=events,
        progress=progress,
        last_step=last_step,
    )
