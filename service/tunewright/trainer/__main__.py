"""`python -m tunewright.trainer JOB_DIR`: runs or resumes the fine-tuning job in a folder, then exits."""

from __future__ import annotations

import socket
import sys
from functools import partial

from tunewright.imports import FOR_FOUR_BITS, need, quick_imports
from tunewright.jobs.folder import JobFolder
from tunewright.jobs.process import run_in_folder
from tunewright.jobs.ranks import run_ranks
from tunewright.trainer.spec import TrainingSpec


def _run(folder: JobFolder, spec: TrainingSpec) -> int:
    if spec.tuning.gpus == 1:
        return _train(folder, spec)
    if spec.tuning.type == "qlora":
        need(FOR_FOUR_BITS)  # before there are ranks, which could not start again as what they are
    return run_ranks(folder, spec.tuning.gpus, _title(spec), partial(_train, folder, spec))


def _train(folder: JobFolder, spec: TrainingSpec, rendezvous: socket.socket | None = None) -> int:
    with quick_imports(four_bits=spec.tuning.type == "qlora"):
        from tunewright.trainer.run import run_job

    return run_job(folder, spec, rendezvous)


def _title(spec: TrainingSpec) -> str:
    return f"trainer {spec.job_id}"


if __name__ == "__main__":
    sys.exit(run_in_folder("tunewright.trainer", __doc__, TrainingSpec, _title, _run))
