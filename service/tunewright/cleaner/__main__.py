"""`python -m tunewright.cleaner JOB_DIR`: runs the cleaning in a folder, then exits."""

from __future__ import annotations

import os
import sys

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is imported: nothing here needs its threads

from tunewright.cleaner.folder import CleaningSpec
from tunewright.cleaner.run import run_cleaning
from tunewright.jobs.process import run_in_folder

if __name__ == "__main__":
    sys.exit(
        run_in_folder(
            "tunewright.cleaner", __doc__, CleaningSpec, lambda spec: f"cleaning {spec.job_id}", run_cleaning
        )
    )
