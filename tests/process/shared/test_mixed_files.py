"""Training on several files with weights: a killed trainer goes on in the same order, and the whole service does it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.engine.conftest import DEMO, FAST, Service, wait_until
from tests.without_vllm import BASE

from forked import start_trainer
from tunewright.config import embedded_base_path
from tunewright.jobs.folder import JobFolder
from tunewright.plan.defaults import resolve
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.registry.content import adapter_sha256
from tunewright.rows.reading import Reading
from tunewright.trainer.spec import FurtherFile, TrainingResult, TrainingSpec
from tunewright_client import BadRequestError, Tunewright

ROWS = (DEMO / "train.jsonl").read_text().splitlines(keepends=True)
EPOCHS, STEPS = 3, 9
"""4 rows once, half of 8, and 2 twice: 12 examples an epoch, in 3 steps. All rows once would be 4."""


def write(path: Path, rows: list[str]) -> Path:
    path.write_text("".join(rows))
    return path


def job_folder(path: Path) -> JobFolder:
    path.mkdir()
    once, half, twice = (
        write(path / f"{name}.jsonl", rows)
        for name, rows in (("once", ROWS[:4]), ("half", ROWS[4:12]), ("twice", ROWS[12:14]))
    )
    folder = JobFolder(path)
    tuning = {"type": "lora", "n_epochs": EPOCHS, "batch_size": 4, "learning_rate": 3e-3, "dropout": 0.1}
    folder.write_spec(
        TrainingSpec(
            job_id="ftjob-mixed",
            base_name="tiny",
            base_path=str(embedded_base_path()),
            training_file=str(once),
            further_files=(
                FurtherFile(file=str(half), weight=0.5),
                FurtherFile(file=str(twice), weight=2.0),
            ),
            validation_file=str(once),
            validation_reading=Reading(),
            seed=5,
            device="cpu",
            tuning=resolve(
                tuning=TuningOptions(**tuning),
                hyperparameters=HyperparameterOptions(),
                rows=12,
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
    return {d["step"]: (d["train_loss"], d.get("valid_loss"), d["grad_norm"]) for d in metrics}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    """A job that was not disturbed."""
    folder = job_folder(tmp_path_factory.mktemp("mixed") / "whole")
    assert start_trainer(folder).wait(240) == 0, folder.log_file.read_text()[-2000:]
    return folder


@pytest.mark.parametrize("step", [4, pytest.param(8, marks=pytest.mark.soak)])
def test_a_killed_trainer_goes_on_with_the_rows_that_would_have_come(
    whole: JobFolder, tmp_path: Path, step: int
) -> None:
    killed = job_folder(tmp_path / "killed")
    process = start_trainer(killed)
    wait_until(lambda: step in losses(killed), 180, f"step {step}")
    process.kill()
    process.wait()
    assert start_trainer(killed).wait(240) == 0
    assert sorted(losses(whole)) == list(range(1, STEPS + 1))
    assert losses(killed) == losses(whole)
    assert adapter_sha256(killed.adapter) == adapter_sha256(whole.adapter), "bit for bit"
    result = whole.read_result(TrainingResult)
    assert result is not None
    told = {e["data"]["file"]: e["data"] for e in whole.read_events(0)[0] if "file" in (e.get("data") or {})}
    assert {name: one["examples"] for name, one in told.items()} == {
        "once.jsonl": 4,
        "half.jsonl": 4,
        "twice.jsonl": 4,
    }
    assert sum(one["tokens"] for one in told.values()) == result.trained_tokens


def test_a_job_on_local_files_with_weights_survives_a_kill(
    service: Service, client: Tunewright, tmp_path: Path
) -> None:
    first, second = write(tmp_path / "first.jsonl", ROWS[:32]), write(tmp_path / "second.jsonl", ROWS[32:48])
    tuning = {**FAST, "n_epochs": 3, "batch_size": 8}
    job = client.jobs.create(
        BASE,
        first,
        "auto",
        tuning=tuning,
        mix={second: 2.0, first: 0.5},
        data={"validation_share": 0.1},
    )
    weights = {one["file"]: one["weight"] for one in (job.data or {})["mix"]}
    assert weights.pop(job.training_file or "") == 0.5, "uploaded once"
    ((other, weight),) = weights.items()
    assert weight == 2.0
    wait_until(lambda: ((client.jobs.retrieve(job.id).progress or _NONE).step or 0) >= 5, 180, "step 5")
    with pytest.raises(BadRequestError, match="needed by job"):
        client.files.delete(other)
    record = json.loads((service.data_dir / "jobs" / job.id / "process.json").read_text())
    os.kill(record["command"]["pid"], signal.SIGKILL)
    done = job.wait(timeout=300)
    told = {e.data["file"]: e.data for e in done.events(limit=200) if e.data and "file" in e.data}
    assert {id: one["weight"] for id, one in told.items()} == {other: 2.0, job.training_file: 0.5}
    assert sum(one["tokens"] for one in told.values()) == done.trained_tokens
    assert done.planned is not None
    assert done.planned.tokens == done.trained_tokens
    made = client.adapters.retrieve(done.fine_tuned_model or "")
    assert made.lineage is not None
    assert [(one["file"], one["weight"]) for one in made.lineage.mix or []] == [
        (job.training_file, 0.5),
        (other, 2.0),
    ]
    client.files.delete(other)


class _None:
    step = 0


_NONE = _None()
