"""A job of the methods with a reference that is killed or stopped ends as one that ran undisturbed.

No service: the trainer is run by hand on a job folder, which is all it knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forked import Process, start_trainer
from preferences import as_openai, job_folder, labelled_rows, text_rows
from tiny import tiny_adapter
from tunewright.config import embedded_base_path
from tunewright.jobs.folder import STOPPED_RESUMABLE, JobFolder
from tunewright.registry.content import adapter_sha256
from tunewright.trainer.spec import TrainingResult

EPOCHS, STEPS = 3, 12
"""24 pairs, 6 at a time: 4 steps an epoch."""
KINDS = ("new adapter", "parent", "full", "kto", "kto full", "reward")
IN_SUITE = ("kto full",)
"""The others are part of `make soak-suite`."""


def folder_of(kind: str, path: Path) -> JobFolder:
    rows: list[Any] = [as_openai(row) for row in text_rows(24)]
    method = "dpo"
    tuning: dict[str, Any] = {"type": "lora", "rank": 8, "n_epochs": EPOCHS, "batch_size": 6}
    spec: dict[str, Any] = {}
    if kind.startswith("kto"):
        rows, method = labelled_rows(24), "kto"
    if kind == "reward":
        method = "reward"
    if kind.endswith("full"):
        tuning = {"type": "full", "n_epochs": EPOCHS, "batch_size": 6, "learning_rate": 1e-4}
    if kind == "parent":
        parent = tiny_adapter(path.parent / "parent", embedded_base_path(), r=8, target_modules="all-linear")
        spec = {"parent_adapter": str(parent)}
    return job_folder(path, rows, rows[:4], spec=spec, method=method, **tuning)


def until(process: Process, condition: Callable[[], object], seconds: float = 240) -> None:
    """Until the condition holds, while the process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def losses(folder: JobFolder) -> dict[int, Any]:
    """The last event of each step: a resumed trainer repeats the steps since its checkpoint."""
    metrics = [event["data"] for event in folder.read_events(0)[0] if event["type"] == "metrics"]
    names = ("train_loss", "learning_rate", "grad_norm")
    others = ("train_reward_margin", "train_reward_accuracy", "train_kl", "valid_loss", "valid_reward_margin")
    return {
        data["step"]: [data[name] for name in names] + [data.get(name) for name in others] for data in metrics
    }


def product(folder: JobFolder) -> Any:
    if folder.adapter.is_dir():
        return adapter_sha256(folder.adapter)
    return (folder.model / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "kind", [kind if kind in IN_SUITE else pytest.param(kind, marks=pytest.mark.soak) for kind in KINDS]
)
def test_kill_9_and_a_stop_change_nothing(tmp_path: Path, kind: str) -> None:
    undisturbed = folder_of(kind, tmp_path / "undisturbed" / "job")
    assert start_trainer(undisturbed).wait(400) == 0, undisturbed.log_file.read_text()[-2000:]
    result = undisturbed.read_result(TrainingResult)
    assert result is not None
    assert sorted(result.checkpoints) == [4, 8, 12]
    assert sorted(losses(undisturbed)) == list(range(1, STEPS + 1))

    folder = folder_of(kind, tmp_path / "killed" / "job")
    process = start_trainer(folder)
    until(process, lambda: 6 in losses(folder))
    process.kill()
    process.wait()
    assert folder.read_result(TrainingResult) is None
    (folder.path.parent / "rows.jsonl").unlink()  # its tokens are on the disk: no later start reads it

    process = start_trainer(folder)
    until(process, lambda: 10 in losses(folder))
    process.terminate()
    assert process.wait(120) == STOPPED_RESUMABLE
    assert start_trainer(folder).wait(400) == 0, folder.log_file.read_text()[-2000:]

    messages = [event["message"] for event in folder.read_events(0)[0] if event["type"] == "message"]
    assert "Resuming from the checkpoint at step 4" in messages
    assert losses(folder) == losses(undisturbed)
    assert product(folder) == product(undisturbed), "bit for bit"
    ended = folder.read_result(TrainingResult)
    assert ended is not None
    assert ended.forgetting == result.forgetting, (
        "it is compared with what the model was before the first start"
    )
    assert (ended.forgetting is None) == (kind == "reward"), "a model that gives scores has no tokens"
