"""A trainer that is killed resumes from its last checkpoint, with the same result as one that ran undisturbed.

No service: the trainer is run by hand on a job folder, which is all it knows.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from forked import start_trainer
from tunewright.config import embedded_base_path
from tunewright.jobs.folder import STOPPED_RESUMABLE, JobFolder
from tunewright.plan.defaults import resolve
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.registry.content import adapter_sha256
from tunewright.rows.cache import cache_key, file_sha256
from tunewright.trainer.spec import TrainingResult, TrainingSpec

from .conftest import DEMO, wait_until

EPOCHS, STEPS = 3, 12
"""24 rows, 6 at a time: 4 steps an epoch."""


def job_folder(path: Path) -> JobFolder:
    rows = (DEMO / "train.jsonl").open().readlines()[:24]
    data = path.parent / "rows.jsonl"
    data.write_text("".join(rows))
    tuning = {"type": "lora", "n_epochs": EPOCHS, "batch_size": 6, "learning_rate": 3e-3, "dropout": 0.1}
    folder = JobFolder(path)
    folder.write_spec(
        TrainingSpec(
            job_id="ftjob-resume",
            base_name="tiny",
            base_path=str(embedded_base_path()),
            training_file=str(data),
            validation_file=str(data),
            training_sha256=file_sha256(data),
            validation_sha256=file_sha256(data),
            seed=5,
            device="cpu",
            tuning=resolve(
                tuning=TuningOptions(**tuning),
                hyperparameters=HyperparameterOptions(),
                rows=24,
                context=1024,
                max_rank=64,
                device="cpu",
            ),
        )
    )
    return folder


def losses(folder: JobFolder) -> dict[int, Any]:
    """The last event of each step: a resumed trainer repeats the steps since its checkpoint."""
    metrics = [e["data"] for e in folder.read_events(0)[0] if e["type"] == "metrics"]
    return {
        d["step"]: (d["train_loss"], d.get("valid_loss"), d["learning_rate"], d["grad_norm"]) for d in metrics
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    folder = job_folder(tmp_path_factory.mktemp("undisturbed") / "job")
    assert start_trainer(folder).wait(180) == 0, folder.log_file.read_text()[-2000:]
    result = folder.read_result(TrainingResult)
    assert result is not None
    assert result.status == "succeeded"
    assert sorted(result.checkpoints) == [4, 8, 12]
    assert sorted(losses(folder)) == list(range(1, STEPS + 1))
    return folder


def test_kill_9_and_a_torn_checkpoint_change_nothing(undisturbed: JobFolder, tmp_path: Path) -> None:
    folder = job_folder(tmp_path / "job")
    process = start_trainer(folder)
    wait_until(lambda: 9 in losses(folder), 120, "steps behind the second epoch")
    process.kill()
    process.wait()
    assert folder.read_result(TrainingResult) is None
    assert not folder.adapter.exists()
    checkpoints = dict(folder.complete_checkpoints())
    assert 8 in checkpoints
    weights = checkpoints[8] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])  # torn: it is passed over for the one before
    shutil.rmtree(folder.work, ignore_errors=True)
    (tmp_path / "rows.jsonl").unlink()  # its tokens are on the disk: the second start does not read it

    assert start_trainer(folder).wait(180) == 0
    messages = [e["message"] for e in folder.read_events(0)[0] if e["type"] == "message"]
    assert "Resuming from the checkpoint at step 4" in messages
    assert losses(folder) == losses(undisturbed)
    assert adapter_sha256(folder.adapter) == adapter_sha256(undisturbed.adapter), "bit for bit"


@pytest.mark.parametrize("step", [2, pytest.param(3, marks=pytest.mark.soak)])
def test_sigterm_saves_and_the_rest_follows(undisturbed: JobFolder, tmp_path: Path, step: int) -> None:
    """The signal mostly arrives in the step after: the epoch's third, or its last."""
    folder = job_folder(tmp_path / "job")
    process = start_trainer(folder)
    wait_until(lambda: step in losses(folder), 120, f"{step} steps")
    process.terminate()
    assert process.wait(60) == STOPPED_RESUMABLE
    assert start_trainer(folder).wait(180) == 0
    steps = [e["data"]["step"] for e in folder.read_events(0)[0] if e["type"] == "metrics"]
    assert steps == list(range(1, STEPS + 1)), "nothing is done twice"
    assert losses(folder) == losses(undisturbed)
    assert adapter_sha256(folder.adapter) == adapter_sha256(undisturbed.adapter)


def test_a_stop_while_the_data_is_tokenized_ends_at_once_and_leaves_nothing_half(tmp_path: Path) -> None:
    """Another process is tokenizing the same: this one waits for it, and its heartbeat goes on."""
    folder = job_folder(tmp_path / "job")
    spec = folder.read_spec(TrainingSpec)
    assert spec.training_sha256 is not None
    key = cache_key(
        spec.training_sha256,
        Path(spec.base_path),
        chat_template=None,
        max_length=spec.tuning.max_length,
        truncation=spec.tuning.truncation,
    )
    unfinished = folder.token_cache / f".{key}"
    unfinished.mkdir(parents=True)
    with (unfinished / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start_trainer(folder)
        beaten = wait_until(folder.last_beat, 120, "the heartbeat")
        wait_until(lambda: folder.last_beat() > beaten, 10, "another beat")
        process.terminate()
        assert process.wait(5) == -signal.SIGTERM
    assert start_trainer(folder).wait(180) == 0
    assert [path.name for path in folder.token_cache.iterdir()] == [key]


def test_two_trainers_never_share_a_job(tmp_path: Path) -> None:
    folder = job_folder(tmp_path / "job")
    first = start_trainer(folder)
    try:
        wait_until(lambda: folder.events_file.exists(), 60, "the first one works")
        second = start_trainer(folder)
        assert second.wait(60) == 3
        assert "another process has this job" in folder.log_file.read_text()
    finally:
        first.kill()
        first.wait()
    assert json.loads(folder.spec_file.read_text())["job_id"] == "ftjob-resume"
