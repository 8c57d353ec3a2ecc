"""The launcher of a job's ranks: how they end, together. Their work is a few lines here; torch is not imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tunewright.jobs.folder import JobFolder, Outcome

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from tunewright.jobs.folder import JobFolder, Outcome
from tunewright.jobs.ranks import run_ranks

folder = JobFolder(Path(sys.argv[1]))

def run(rendezvous):
    rank = int(os.environ["RANK"])
    (folder.path / f"rank-{rank}").write_text(str(os.getpid()))
    if rank == 0 and "RANK0_STOPS" in os.environ:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
    (folder.path / f"ready-{rank}").touch()
    exec(os.environ[f"RUN_{rank}"])
    return 0

sys.exit(run_ranks(folder, 2, "test", run))
"""
FOR_EVER = "time.sleep(600)"


class Job:
    def __init__(self, path: Path) -> None:
        self.folder = JobFolder(path)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, first: str, second: str, **environment: str) -> subprocess.Popen[bytes]:
        """Run these lines in rank 0 and in rank 1, and wait until both run."""
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(self.folder.path)],
            env={**os.environ, "RUN_0": first, "RUN_1": second, **environment},
        )
        wait_until(lambda: len(list(self.folder.path.glob("ready-*"))) == 2)
        return self.process

    @property
    def ranks(self) -> list[psutil.Process]:
        return [psutil.Process(int((self.folder.path / f"rank-{n}").read_text())) for n in range(2)]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path)
    yield made
    if made.process is not None:
        made.process.kill()
        made.process.wait()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def are_gone(ranks: list[psutil.Process]) -> bool:
    _, left = psutil.wait_procs(ranks, timeout=20)
    return not [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_others_and_the_launcher_as_it_ended(job: Job, victim: int) -> None:
    process = job.start(FOR_EVER, FOR_EVER)
    ranks = job.ranks
    ranks[victim].kill()

    assert process.wait(30) == -signal.SIGKILL
    assert are_gone(ranks)


def test_no_rank_outlives_a_killed_launcher_even_if_it_is_stopped(job: Job) -> None:
    process = job.start(FOR_EVER, FOR_EVER)
    ranks = job.ranks
    ranks[1].suspend()
    process.kill()

    assert are_gone(ranks)


def test_a_rank_that_crashes_ends_the_job_with_its_code(job: Job) -> None:
    assert job.start(FOR_EVER, "sys.exit(7)").wait(30) == 7


def test_what_one_rank_fails_with_is_the_jobs_result(job: Job) -> None:
    fails = "folder.write_result(Outcome(status='failed', error_code='out_of_memory'))"
    assert job.start(FOR_EVER, fails).wait(30) == 0
    assert job.folder.read_outcome() == Outcome(status="failed", error_code="out_of_memory")


def test_ranks_that_fail_at_the_same_moment_leave_one_result(job: Job) -> None:
    fails = (
        "from tunewright.jobs.process import leave\n"
        "for n in range(300): assert leave(folder, Outcome(status='failed', error_code='io_error')) == 0"
    )
    assert job.start(fails, fails).wait(30) == 0
    assert job.folder.read_outcome() == Outcome(status="failed", error_code="io_error")


def test_rank_0_may_save_the_product_after_the_others_have_ended(job: Job) -> None:
    saves = "time.sleep(1.0); folder.write_result(Outcome(status='succeeded'))"
    assert job.start(saves, "pass").wait(30) == 0
    assert job.folder.read_outcome() == Outcome(status="succeeded")


def test_sigterm_is_for_rank_0_alone(job: Job) -> None:
    process = job.start(FOR_EVER, FOR_EVER, RANK0_STOPS="1")
    ranks = job.ranks
    process.terminate()

    assert process.wait(30) == 75, "rank 1, which got none, has not ended the job"
    assert are_gone(ranks)


def test_a_stop_before_rank_0_can_save_ends_the_job_by_the_signal(job: Job) -> None:
    process = job.start(FOR_EVER, FOR_EVER)
    ranks = job.ranks
    process.terminate()

    assert process.wait(30) == -signal.SIGTERM
    assert are_gone(ranks)


def test_a_hung_job_has_every_rank_write_its_stack(job: Job) -> None:
    stack = (
        f"import faulthandler; faulthandler.enable(open(folder.path / f'stack-{{rank}}', 'w')); {FOR_EVER}"
    )
    process = job.start(stack, stack)
    wait_until(lambda: len(list(job.folder.path.glob("stack-*"))) == 2)
    process.send_signal(signal.SIGABRT)

    assert process.wait(30) == -signal.SIGABRT
    assert all(
        "Fatal Python error: Aborted" in (job.folder.path / f"stack-{n}").read_text() for n in range(2)
    )
