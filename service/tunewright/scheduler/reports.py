"""Takes what trainers report into the store, each line exactly once and each step once."""

from __future__ import annotations

from typing import Any

from tunewright.ids import model_name
from tunewright.store.records import Job
from tunewright.store.store import Store
from tunewright.trainer.folder import JobFolder


def take_in_events(store: Store, job: Job, folder: JobFolder) -> None:
    """Read on from the job's offset. A resumed trainer repeats steps since its checkpoint: those are passed over."""
    lines, offset = folder.read_events(job.events_offset)
    if offset == job.events_offset:
        return
    events: list[dict[str, Any]] = []
    checkpoints: list[dict[str, Any]] = []
    last_step, progress = job.last_step, None
    is_adapter = bool(job.resolved and job.resolved["type"] != "full")
    for line in lines:
        if line["type"] == "checkpoint":
            if line["usable"] and is_adapter:
                checkpoints.append(
                    {
                        "step": line["step"],
                        "model": model_name(job.base, job.suffix, job.id, line["step"]),
                        "metrics": line["metrics"],
                        "created_at": line["created_at"],
                    }
                )
            continue
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
        new_checkpoints=checkpoints,
    )
