"""The first and last steps of a job's process, the same for all kinds: lock the folder, set the title, write the
result."""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel
from setproctitle import setproctitle

from tunewright.atomic import is_disk_full
from tunewright.imports import prepare_environment
from tunewright.jobs.folder import DISK_FULL, JobFolder, Outcome

Spec = TypeVar("Spec", bound=BaseModel)
_PR_SET_PDEATHSIG = 1


def run_in_folder(
    module: str,
    about: str | None,
    spec_model: type[Spec],
    title: Callable[[Spec], str],
    run: Callable[[JobFolder, Spec], int],
) -> int:
    """The main function of `python -m module JOB_DIR`; returns the exit code.

    This process, the launcher, holds the folder's lock for as long as it lives, whether it runs the job itself or
    starts one process for each rank.

    Exit codes: 0 the run has ended and result.json says how; 75 it was asked to stop and saved its progress; 2 the
    folder has no spec; 3 another process holds the lock; 74 the disk is full, so that there is no result.json; any
    other code: it crashed and may be started again. `run` is called when the lock is held; it imports torch.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    parser.add_argument("folder", type=Path, help="job folder with a spec.json")
    folder = JobFolder(parser.parse_args().folder.resolve())
    try:
        spec = folder.read_spec(spec_model)
    except (OSError, ValueError) as error:
        print(f"{folder.spec_file}: not a job spec: {error}", file=sys.stderr)
        return 2
    lock = os.open(folder.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{folder.path}: another process has this job", file=sys.stderr)
        return 3
    setproctitle(f"tunewright: {title(spec)}")
    if folder.read_outcome() is not None:
        return 0
    prepare_environment()
    code = run(folder, spec)
    if code == DISK_FULL:
        # Buffered output could not be written either, and Python would then exit with a code of its own.
        os._exit(code)
    return code


def end_with(parent: int) -> None:
    """Have the system kill this process when its parent, which has this id, ends; called first in a process that was
    forked by a thread which lives as long as the parent. It has inherited the parent's locks, above all that of the job
    folder, and would keep them."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was killed before
        os._exit(1)


def rank() -> int:
    """The rank of this process among those of the job, from the variable that torch launchers set; 0 where it is the
    only one. Rank 0 alone writes events, checkpoints and products."""
    return int(os.environ.get("RANK", "0"))


def leave(folder: JobFolder, outcome: Outcome) -> int:
    """Write the result, which ends the run. Returns the exit code.

    Rank 0 alone writes that the job has succeeded. A failure is written by the rank that has it: it may be the only
    one, and rank 0 waits for it then.
    """
    if rank() != 0 and outcome.status == "succeeded":
        return 0
    if outcome.error_code == "disk_full":
        folder.remove_products()  # they cannot be used any more, and the result needs the room
    try:
        folder.write_result(outcome, rank())
    except OSError as error:
        if is_disk_full(error):
            return DISK_FULL
        raise
    return 0
