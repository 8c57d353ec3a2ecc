"""`python -m tunewright.trainer JOB_DIR`: runs or resumes the fine-tuning job in a folder, then exits."""

from __future__ import annotations

import sys

from tunewright.imports import quick_imports
from tunewright.jobs.folder import JobFolder
from tunewright.jobs.process import run_in_folder
from tunewright.trainer.spec import TrainingSpec


def _run(folder: JobFolder, spec: TrainingSpec) -> int:
    with quick_imports(four_bits=spec.tuning.type == "qlora"):
        from tunewright.trainer.run import run_job

    return run_job(folder, spec)


if __name__ == "__main__":
    sys.exit(
        run_in_folder(
            "tunewright.trainer", __doc__, TrainingSpec, lambda spec: f"trainer {spec.job_id}", _run
        )
    )
