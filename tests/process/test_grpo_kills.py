"""A job of the method reinforcement that is killed or stopped ends as one that ran undisturbed.

No service: the trainer is run by hand on a job folder, which is all it knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_dpo_kills import product, until

from forked import start_trainer
from graded import graded_folder, prompts
from tunewright.jobs.folder import STOPPED_RESUMABLE, JobFolder
from tunewright.trainer.spec import TrainingResult

EPOCHS, STEPS = 3, 12
"""25 prompts, 6 at a time: 4 steps an epoch."""
MEASURES = (
    "loss",
    "reward",
    "reward_std",
    "grader_near",
    "completion_length",
    "completions_clipped",
    "grader_errors",
)


def folder_of(kind: str, path: Path) -> JobFolder:
    rows = prompts(25)
    options: dict[str, Any] = {"n_epochs": EPOCHS, "batch_size": 6, "num_generations": 2}
    if kind == "full":
        return graded_folder(
            path, rows, rows[:3], type="full", **{**options, "rank": "auto", "learning_rate": 1e-4}
        )
    return graded_folder(path, rows, rows[:3], hyperparameters={"beta": 0.1}, **options)


def measured(folder: JobFolder) -> dict[int, Any]:
    """The last event of each step: a resumed trainer repeats the steps since its checkpoint."""
    metrics = [event["data"] for event in folder.read_events(0)[0] if event["type"] == "metrics"]
    names = [*(f"train_{name}" for name in MEASURES), "train_kl", "learning_rate", "grad_norm", "epoch"]
    names += ["valid_loss", "valid_reward", "valid_grader_near", "valid_completion_length"]
    return {data["step"]: [data.get(name) for name in names] for data in metrics}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.soak) for kind in ("adapter", "full")])
def test_kill_9_and_a_stop_change_nothing(tmp_path: Path, kind: str) -> None:
    undisturbed = folder_of(kind, tmp_path / "undisturbed" / "job")
    assert start_trainer(undisturbed).wait(400) == 0, undisturbed.log_file.read_text()[-2000:]
    result = undisturbed.read_result(TrainingResult)
    assert result is not None
    assert sorted(result.checkpoints) == [4, 8, 12]
    assert result.trained_tokens > 0
    assert result.metrics["valid_reward"] > 0
    assert sorted(measured(undisturbed)) == list(range(1, STEPS + 1)), "no step twice, and none left out"
    assert all(values[1] > 0 for values in measured(undisturbed).values()), "rewards"

    folder = folder_of(kind, tmp_path / "killed" / "job")
    process = start_trainer(folder)
    until(process, lambda: 6 in measured(folder))
    process.kill()
    process.wait()
    assert folder.read_result(TrainingResult) is None

    process = start_trainer(folder)
    until(process, lambda: 10 in measured(folder))
    process.terminate()
    assert process.wait(120) == STOPPED_RESUMABLE
    assert start_trainer(folder).wait(400) == 0, folder.log_file.read_text()[-2000:]

    messages = [event["message"] for event in folder.read_events(0)[0] if event["type"] == "message"]
    assert "Resuming from the checkpoint at step 4" in messages
    assert measured(folder) == measured(undisturbed)
    assert product(folder) == product(undisturbed), "bit for bit"
    again = folder.read_result(TrainingResult)
    assert again is not None
    assert (again.trained_tokens, again.metrics) == (result.trained_tokens, result.metrics)
