"""`python -m tunewright.synthesizer JOB_DIR`: runs or resumes the synthesis in a folder, then exits."""

from __future__ import annotations

import os
import sys

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is imported: engines and trainers need the cores

from tunewright.jobs.process import run_in_folder
from tunewright.synthesizer.folder import SynthesisSpec
from tunewright.synthesizer.run import run_synthesis

if __name__ == "__main__":
    sys.exit(
        run_in_folder(
            "tunewright.synthesizer",
            __doc__,
            SynthesisSpec,
            lambda spec: f"synthesis {spec.job_id}",
            run_synthesis,
        )
    )
