"""`python -m tunewright.trainer JOB_DIR`: runs or resumes the job in a folder, then exits.

Exit codes: 0 the job is over and result.json says how; 75 asked to stop, a checkpoint is saved; 2 the folder has no
spec; 3 another trainer has it; 74 the disk is full, so that there is no result.json; else it crashed and may be
started again.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from pathlib import Path

from setproctitle import setproctitle

from tunewright.trainer.folder import DISK_FULL, JobFolder


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tunewright.trainer", description=__doc__)
    parser.add_argument("folder", type=Path, help="job folder with a spec.json")
    folder = JobFolder(parser.parse_args().folder.resolve())
    try:
        spec = folder.read_spec()
    except (OSError, ValueError) as error:
        print(f"{folder.spec_file}: not a job spec: {error}", file=sys.stderr)
        return 2
    lock = os.open(folder.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{folder.path}: another trainer has this job", file=sys.stderr)
        return 3
    setproctitle(f"tunewright: trainer {spec.job_id}")
    if folder.read_result() is not None:
        return 0
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["HF_HUB_OFFLINE"] = "1"  # the base is a folder: nothing is to be looked up
    from tunewright.trainer.run import run_job  # imports torch: only now that the job is ours

    code = run_job(folder, spec)
    if code == DISK_FULL:
        os._exit(
            code
        )  # what is left to print would not fit either, and Python would exit with a code of its own
    return code


if __name__ == "__main__":
    sys.exit(main())
