"""`python -m tunewright.trainer JOB_DIR`: runs or resumes the fine-tuning job in a folder, then exits."""

from __future__ import annotations

import sys

from tunewright.jobs.folder import JobFolder, JobSpec
from tunewright.jobs.process import run_in_folder


def _run(folder: JobFolder, spec: JobSpec) -> int:
    from tunewright.trainer.run import run_job

    return run_job(folder, spec)


if __name__ == "__main__":
    sys.exit(
        run_in_folder(
            "tunewright.trainer", __doc__, JobFolder.read_spec, lambda spec: f"trainer {spec.job_id}", _run
        )
    )
