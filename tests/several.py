"""Jobs in several processes on the CPU, without a service: their folders, and what one of them has told."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from forked import Process, start_trainer
from preferences import as_openai, text_rows, write
from tunewright.config import embedded_base_path
from tunewright.engine.gpus import NoDriver, gpu_count
from tunewright.jobs.folder import JobFolder
from tunewright.plan.defaults import Resolved, resolve
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.rows.cache import file_sha256
from tunewright.scheduler.devices import visible_to
from tunewright.trainer.spec import TrainingSpec

DEMO = Path(embedded_base_path()).parent / "demo"
TUNING: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "rank": 8, "learning_rate": 1e-3},
    "qlora": {"type": "qlora", "rank": 8, "learning_rate": 1e-3},
    "full": {"type": "full", "learning_rate": 1e-4, "sharding": "none"},
    "fsdp": {"type": "full", "learning_rate": 1e-4, "sharding": "fsdp"},
}


ROWS = 24


def gpus() -> int:
    """The number of GPUs of this machine."""
    try:
        return gpu_count()
    except NoDriver:
        return 0


def folder_of(
    path: Path, kind: str, gpus: int, *, method: str = "supervised", device: str = "cpu"
) -> JobFolder:
    """A job of 12 rows a step, in 3 epochs, in so many processes."""
    folder = JobFolder(path)
    path.mkdir(parents=True)
    if method == "dpo":
        data = write(path / "rows.jsonl", [as_openai(row) for row in text_rows(ROWS)])
    else:
        data = path / "rows.jsonl"
        data.write_text("".join((DEMO / "train.jsonl").open().readlines()[:ROWS]))
    held_out = path / "held-out.jsonl"
    held_out.write_text("".join(data.open().readlines()[:11]))  # of which no rank has as many as the other
    folder.write_spec(
        TrainingSpec(
            job_id="ftjob-several",
            base_name="tiny",
            base_path=str(embedded_base_path()),
            training_file=str(data),
            validation_file=str(held_out),
            training_sha256=file_sha256(data),
            validation_sha256=file_sha256(held_out),
            seed=5,
            device=device,
            method=method,
            tuning=resolved(kind, gpus, method, device),
        )
    )
    return folder


def resolved(kind: str, gpus: int, method: str, device: str) -> Resolved:
    return resolve(
        tuning=TuningOptions(**TUNING[kind], n_epochs=3, batch_size=12, gpus=gpus),
        hyperparameters=HyperparameterOptions(),
        rows=ROWS,
        context=1024,
        max_rank=64,
        device=device,
        method=method,
    )


def started(folder: JobFolder) -> Process:
    """The trainer of the job, which sees as many GPUs as it uses, as the scheduler has it."""
    spec = folder.read_spec(TrainingSpec)
    devices = [f"cuda:{n}" for n in range(spec.tuning.gpus)] if spec.device == "cuda" else ["cpu"]
    return start_trainer(folder, visible_to(*devices))


def with_gpus(folder: JobFolder, kind: str, gpus: int) -> None:
    """Have the job's next start be in so many processes."""
    spec = folder.read_spec(TrainingSpec)
    folder.write_spec(spec.model_copy(update={"tuning": resolved(kind, gpus, spec.method, spec.device)}))


def losses(folder: JobFolder) -> dict[int, list[float]]:
    """(training loss, norm of the gradient, held-out loss at the end of an epoch) by step, from its last event."""
    metrics = [event["data"] for event in folder.read_events(0)[0] if event["type"] == "metrics"]
    names = ("train_loss", "grad_norm", "valid_loss")
    return {data["step"]: [data[name] for name in names if name in data] for data in metrics}


def steps(folder: JobFolder) -> list[int]:
    """The steps of all events: twice those that were done again."""
    return [event["data"]["step"] for event in folder.read_events(0)[0] if event["type"] == "metrics"]


def messages(folder: JobFolder) -> list[str]:
    return [event["message"] for event in folder.read_events(0)[0] if event["type"] == "message"]


def difference(one: dict[int, list[float]], other: dict[int, list[float]]) -> float:
    """The largest, as a share."""
    assert one.keys() == other.keys()
    pairs = [pair for step in one for pair in zip(one[step], other[step], strict=True)]
    return max(abs(a - b) / abs(a) for a, b in pairs)


def ranks_of(process: Process) -> list[psutil.Process]:
    """The processes that the launcher has started, by their ranks."""
    return sorted(psutil.Process(process.pid).children(), key=lambda one: one.pid)


def until(process: Process, condition: Callable[[], object], seconds: float = 300) -> None:
    """Until the condition holds, while the process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
