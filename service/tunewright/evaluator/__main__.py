"""`python -m tunewright.evaluator JOB_DIR`: runs or resumes the evaluation in a folder, then exits."""

from __future__ import annotations

import os
import sys

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is imported: engines and trainers need the cores

from tunewright.evaluator.folder import EvaluationSpec
from tunewright.evaluator.run import run_evaluation
from tunewright.jobs.process import run_in_folder

if __name__ == "__main__":
    sys.exit(
        run_in_folder(
            "tunewright.evaluator",
            __doc__,
            EvaluationSpec,
            lambda spec: f"evaluation {spec.job_id}",
            run_evaluation,
        )
    )
