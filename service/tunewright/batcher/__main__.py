"""`python -m tunewright.batcher JOB_DIR`: answers the batch in a folder, then exits."""

from __future__ import annotations

import sys

from tunewright.batcher.folder import BatchSpec
from tunewright.batcher.run import run_batch
from tunewright.jobs.process import run_in_folder

if __name__ == "__main__":
    sys.exit(
        run_in_folder(
            "tunewright.batcher", __doc__, BatchSpec, lambda spec: f"batch {spec.job_id}", run_batch
        )
    )
