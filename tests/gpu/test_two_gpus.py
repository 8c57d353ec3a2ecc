"""A job on two GPUs ends as on one, and goes on after kill -9 with two or with one. The trainer is run by hand.

`benchmarks/two_gpus.py` measures the same at the size of real models.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psutil
import pytest

from several import difference, folder_of, gpus, losses, ranks_of, started, steps, until, with_gpus
from tunewright.jobs.folder import STOPPED_RESUMABLE, JobFolder
from tunewright.trainer.spec import TrainingResult

Alone = Callable[..., JobFolder]
BOUND = 2e-2
"""Relative: products of bfloat16 numbers are summed in another order."""


pytestmark = [
    pytest.mark.gpu, pytest.mark.timeout(900), pytest.mark.skipif(gpus() < 2, reason="there are not two GPUs"),
]  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """Jobs on one GPU, each trained once."""

    @cache
    def trained(kind: str, method: str = "supervised") -> JobFolder:
        path = tmp_path_factory.mktemp("one") / "job"
        return finished(folder_of(path, kind, 1, method=method, device="cuda"))

    return trained


def finished(folder: JobFolder) -> JobFolder:
    assert started(folder).wait(300) == 0, folder.log_file.read_text()[-3000:]
    result = folder.read_result(TrainingResult)
    assert result is not None
    assert result.status == "succeeded", result
    return folder


@pytest.mark.parametrize("method", ["supervised", "dpo"])
@pytest.mark.parametrize("kind", ["lora", "qlora", "full", "fsdp"])
def test_two_gpus_have_the_losses_of_one(tmp_path: Path, alone: Alone, kind: str, method: str) -> None:
    folder = finished(folder_of(tmp_path / "job", kind, 2, method=method, device="cuda"))

    one = alone("full" if kind == "fsdp" else kind, method)
    print(f"\n{kind} {method}: losses differ by {difference(losses(one), losses(folder)):.1e}")
    assert difference(losses(one), losses(folder)) < BOUND
    assert steps(folder) == sorted(losses(one))


@pytest.mark.parametrize("kind", ["lora", "fsdp"])
@pytest.mark.parametrize(("first", "then"), [(2, 2), (2, 1), (1, 2)])
def test_a_killed_job_goes_on_with_two_gpus_or_with_one(
    tmp_path: Path, alone: Alone, kind: str, first: int, then: int
) -> None:
    folder = folder_of(tmp_path / "job", kind, first, device="cuda")
    process = started(folder)
    until(process, lambda: 3 in losses(folder))
    ranks = ranks_of(process) if first > 1 else []
    (ranks[-1] if ranks else psutil.Process(process.pid)).kill()
    assert process.wait(60) == -signal.SIGKILL
    _, left = psutil.wait_procs(ranks, timeout=20)
    assert [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []

    with_gpus(folder, kind, then)
    finished(folder)

    one = alone("full" if kind == "fsdp" else kind)
    assert difference(losses(one), losses(folder)) < BOUND


def test_a_stop_is_at_the_same_step_of_both(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "job", "lora", 2, device="cuda")
    process = started(folder)
    until(process, lambda: 1 in losses(folder))
    process.terminate()
    assert process.wait(120) == STOPPED_RESUMABLE
    finished(folder)
    assert steps(folder) == sorted(set(steps(folder))), "nothing is done twice"
