"""Runs a job as several processes of this machine, one for each rank: the launcher forks them, and ends all of them
when one has ended.

The launcher holds the lock of the job folder, and so do its ranks: until the last of them is gone, no other launcher
runs the job. It imports no torch, and never asks a GPU's driver for anything, so that each rank can.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from setproctitle import setproctitle

from tunewright.jobs.folder import STOPPED_RESUMABLE, JobFolder
from tunewright.jobs.process import end_with

_PASSED_ON = (signal.SIGTERM, signal.SIGABRT)
_LEAVE_SECONDS = 3.0
"""Seconds that the other ranks have to end by themselves after one has told the job's end."""


def run_ranks(folder: JobFolder, number: int, title: str, run: Callable[[socket.socket], int]) -> int:
    """Run `run` in as many processes, and return the exit code of the job (`jobs.process.run_in_folder`).

    Returns in the launcher, and in each rank with the value of `run`, which is its exit code. `run` gets the listening
    socket, on the loopback interface, at which rank 0 lets the others find it; its address is in the variables that
    torch's launchers set too.

    The job ends as the rank that ended first: killed, the launcher ends by the same signal. SIGTERM is for rank 0,
    which agrees with the others on the step to stop at; SIGABRT has each of them write its stack. Where the launcher
    is killed the system kills the ranks, which are its children: it forks them in its main thread, which lives as long
    as it does, and they need not run for that (docs/decisions/0036).
    """
    with socket.socket() as rendezvous:
        rendezvous.bind(("127.0.0.1", 0))
        launcher, ranks = os.getpid(), dict[int, int]()
        signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        for rank in range(number):
            pid = os.fork()
            if pid == 0:
                _become(rank, number, rendezvous.getsockname()[1], launcher)
                setproctitle(f"tunewright: {title} rank {rank}")
                return run(rendezvous)
            ranks[pid] = rank
    first = next(iter(ranks))
    signal.signal(signal.SIGTERM, lambda *_: _send([first], signal.SIGTERM))
    signal.signal(signal.SIGABRT, lambda *_: _send(ranks, signal.SIGABRT))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    try:
        code = _code_of_job(folder, ranks)
    finally:
        _end(ranks)
    if code < 0:
        _end_by_signal(-code)
    return code


def _become(rank: int, number: int, port: int, launcher: int) -> None:
    end_with(launcher)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _code_of_job(folder: JobFolder, ranks: dict[int, int]) -> int:
    """Wait for ranks, and remove those that have ended, until one tells how the job ends; negative: by a signal."""
    while True:
        pid, status = os.wait()
        rank, code = ranks.pop(pid), os.waitstatus_to_exitcode(status)
        if folder.read_outcome() is not None:
            return 0
        # Others are done when rank 0 still saves the product.
        if rank == 0 or code not in (0, STOPPED_RESUMABLE):
            return code


def _end(ranks: dict[int, int]) -> None:
    """Kill the ranks that have not ended soon, and collect all of them."""
    deadline = time.monotonic() + _LEAVE_SECONDS
    while ranks:
        if time.monotonic() > deadline:
            _send(ranks, signal.SIGKILL)
        for pid in list(ranks):
            with suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
            del ranks[pid]
        time.sleep(0.02)


def _send(pids: dict[int, int] | list[int], number: int) -> None:
    """Send a signal to ranks that have not been collected, so that their ids are theirs."""
    for pid in list(pids):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _end_by_signal(number: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    time.sleep(60)  # it may take a moment to arrive
