"""A job in two processes ends as in one, and whichever of its processes is killed, nothing is lost and none is left.

No service: the trainer is run by hand on a job folder, with gloo on the CPU (docs/decisions/0036).
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from forked import start_trainer
from several import difference, folder_of, losses, messages, ranks_of, steps, until, with_gpus
from tunewright.jobs.folder import STOPPED_RESUMABLE, JobFolder
from tunewright.trainer.spec import TrainingResult

Alone = Callable[..., JobFolder]
BOUND = 1e-5
"""Relative: the order of sums in float32."""
STEPS = [1, 2, 3, 4, 5, 6]
"""24 rows, 12 at a time: 2 steps an epoch."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """Jobs in one process, each trained once."""

    @cache
    def trained(kind: str, method: str = "supervised") -> JobFolder:
        folder = folder_of(tmp_path_factory.mktemp(kind) / "job", kind, 1, method=method)
        assert start_trainer(folder).wait(600) == 0, folder.log_file.read_text()[-2000:]
        assert sorted(losses(folder)) == STEPS
        return folder

    return trained


def finished(folder: JobFolder) -> JobFolder:
    assert start_trainer(folder).wait(600) == 0, folder.log_file.read_text()[-3000:]
    result = folder.read_result(TrainingResult)
    assert result is not None
    assert result.status == "succeeded", result
    return folder


def told(folder: JobFolder) -> list[str]:
    """All but the plan, since the memory of a device depends on their number, and what is rounded."""
    left_out = ("Planned:", "On general text")
    return [message for message in messages(folder) if not message.startswith(left_out)]


def forgotten(folder: JobFolder) -> float:
    result = folder.read_result(TrainingResult)
    assert result is not None
    assert result.forgetting is not None
    return result.forgetting.kl


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("lora", "supervised"),
        pytest.param("lora", "dpo", marks=pytest.mark.soak),
        pytest.param("fsdp", "dpo", marks=pytest.mark.soak),
    ],
)
def test_two_processes_do_what_one_does(tmp_path: Path, alone: Alone, kind: str, method: str) -> None:
    folder = finished(folder_of(tmp_path / "job", kind, 2, method=method))

    one = alone("full" if kind == "fsdp" else kind, method)
    assert difference(losses(one), losses(folder)) < BOUND
    assert difference(weights(one), weights(folder)) < 1e-3
    assert steps(folder) == STEPS, "rank 0 alone tells them"
    assert told(folder) == told(one)
    assert forgotten(folder) == pytest.approx(forgotten(one), rel=1e-2, abs=1e-5)
    assert {path.name for path in folder.path.glob("checkpoints/step-6/rng_state*")} == {
        "rng_state_0.pth", "rng_state_1.pth",
    }  # fmt: skip


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kind", "first", "then", "victim"),
    [
        pytest.param("lora", 2, 1, "rank 1", marks=pytest.mark.soak),
        pytest.param("lora", 2, 2, "launcher", marks=pytest.mark.soak),
        pytest.param("fsdp", 2, 1, "rank 0", marks=pytest.mark.soak),
        ("fsdp", 1, 2, "launcher"),
    ],
)
def test_a_killed_job_goes_on_with_any_number_of_processes(
    tmp_path: Path, alone: Alone, kind: str, first: int, then: int, victim: str
) -> None:
    folder = folder_of(tmp_path / "job", kind, first)
    process = start_trainer(folder)
    until(process, lambda: 3 in losses(folder))
    ranks = ranks_of(process)
    assert len(ranks) == (first if first > 1 else 0)
    if victim == "launcher":
        process.kill()
    else:
        ranks[int(victim.removeprefix("rank "))].kill()
    assert process.wait(60) == -signal.SIGKILL, "the launcher ends as the rank did"
    _, left = psutil.wait_procs(ranks, timeout=20)
    assert [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
    assert folder.read_outcome() is None

    with_gpus(folder, kind, then)
    finished(folder)

    assert any(message.startswith("Resuming from the checkpoint at step") for message in messages(folder))
    one = alone("full" if kind == "fsdp" else kind)
    assert difference(losses(one), losses(folder)) < BOUND


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_stop_is_at_the_same_step_of_all_ranks(tmp_path: Path, alone: Alone) -> None:
    folder = folder_of(tmp_path / "job", "lora", 2)
    process = start_trainer(folder)
    until(process, lambda: 1 in losses(folder))
    process.terminate()
    assert process.wait(120) == STOPPED_RESUMABLE
    stopped_at = max(losses(folder))

    finished(folder)

    assert stopped_at < 6
    assert steps(folder) == STEPS, "nothing is done twice"
    assert difference(losses(alone("lora")), losses(folder)) < BOUND


def weights(folder: JobFolder) -> dict[int, list[float]]:
    """The sum of the squares of each tensor of the product, by its place."""
    product = folder.adapter / "adapter_model.safetensors"
    tensors = load_file(product if product.exists() else folder.model / "model.safetensors")
    return {n: [float((tensors[name].double() ** 2).sum())] for n, name in enumerate(sorted(tensors))}
