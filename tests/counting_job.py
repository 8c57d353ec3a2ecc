"""`python -m counting_job JOB_DIR`: the process of the kind `counting`, which only tests define. It counts to
`spec.steps`, saves each number, and crashes or waits where files in its folder say so."""

from __future__ import annotations

import os
import signal
import sys
import time

from pydantic import BaseModel

from tunewright.jobs.folder import STOPPED_RESUMABLE, EventLog, JobFolder, Outcome
from tunewright.jobs.process import leave, run_in_folder


class CountingSpec(BaseModel):
    job_id: str
    steps: int


class Counted(Outcome):
    total: int = 0


def count(folder: JobFolder, spec: CountingSpec) -> int:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(STOPPED_RESUMABLE))
    events = EventLog(folder)
    folder.work.mkdir(exist_ok=True)
    saved = folder.work / "count"
    done = int(saved.read_text()) if saved.exists() else 0
    events.message(f"Counting from {done}")
    for step in range(done + 1, spec.steps + 1):
        saved.write_text(str(step))
        events.metrics(f"Step {step}", {"step": step, "total_steps": spec.steps})
        folder.beat()
        while (folder.path / "wait").exists() and step == spec.steps - 1:
            time.sleep(0.02)
    return leave(folder, Counted(status="succeeded", total=spec.steps))


if __name__ == "__main__":
    sys.exit(
        run_in_folder("counting_job", __doc__, CountingSpec, lambda spec: f"counting {spec.job_id}", count)
    )
