"""The whole service with a stand-in for vLLM: all of its processes but the engine's are real."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from rows import PRODUCT, create_job
from tests.engine.conftest import Service, start_service, wait_until
from tunewright.config import Base, embedded_base_path
from tunewright.kinds.fine_tuning.models import FineTuningResult
from tunewright.registry.bases import inspect_base
from tunewright.registry.workspace import Workspace
from tunewright.store.database import Database
from tunewright.store.records import Job
from tunewright.store.states import JobState
from tunewright.store.store import Store
from tunewright_client import Tunewright, TunewrightError

BASE = "tiny"
_FAKES = Path(__file__).parent / "fakes"
FAKES_UVICORN = Path(__file__).parent / "fakes_uvicorn"
"""One that has vLLM's web server, and no adapters."""


def start_without_vllm(
    data_dir: Path,
    *arguments: str,
    fakes: Path = _FAKES,
    environment: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> Service:
    """`tunewright serve` on the embedded base, named `tiny`; its engine answers the same to everything."""
    path = os.pathsep.join([str(fakes), *(entry for entry in sys.path if entry)])
    base = f"{BASE}={embedded_base_path()}"
    return start_service(
        data_dir, "--base", base, "--device", "cpu", "--parity", "off", *arguments,
        environment={"PYTHONPATH": path, **(environment or {})}, cwd=cwd,
    )  # fmt: skip


def old_vllm(folder: Path, version: str) -> Path:
    """A folder for Python's path, on which this version of vLLM seems to be installed."""
    described = folder / f"vllm-{version}.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    return folder


def wait_engine(service: Service, base: str = BASE) -> None:
    """Until the engine of `base` answers; others may never."""

    def is_ready() -> bool:
        assert service.process.poll() is None, f"the service has ended with {service.process.returncode}"
        return _state(client, base) == "ready"

    with service.client() as client:
        wait_until(is_ready, 600, "the engine")  # seconds, but on a machine that other work keeps busy


def _state(client: Tunewright, base: str) -> str | None:
    try:
        return client.models.retrieve(base).state
    except TunewrightError:
        return None  # it starts


def fill(data_dir: Path) -> None:
    """The data of a service after some use: a job in each state, events, a result file, a tuned model, checkpoints.

    Unfinished jobs are on the base `missing`, so that nothing trains.
    """
    data = Workspace(data_dir)
    data.create()
    database = Database(f"sqlite:///{data.path / 'tunewright.db'}")
    database.upgrade()
    database.close()
    store = Store.open(database.url)
    training_file = store.files.add(
        id="file-rows", filename="rows.jsonl", purpose="fine-tune", size=9, sha256="0" * 64, created_at=1.0
    ).id
    data.file(training_file).write_text("{}\n")
    for state in JobState:
        if state is not JobState.SUCCEEDED:
            create_job(store, base="missing", training_file="file-rows", state=state)
    done = create_job(store, base=BASE, training_file="file-rows", state=JobState.RUNNING)
    for step in (1, 2):
        numbers = {"step": step, "total_steps": 2, "train_loss": 1.0}
        store.jobs.add_event(done, {"level": "info", "type": "metrics", "message": "x", "data": numbers})
    _publish(store, data, done)
    store.close()


def _publish(store: Store, data: Workspace, job: Job) -> None:
    source = data.tmp / "adapter"
    source.mkdir()
    config = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj"],
        "lora_dropout": 0.0,
    }
    (source / "adapter_config.json").write_text(json.dumps(config))
    (source / "adapter_model.safetensors").write_bytes(b"weights")
    sha256 = data.artifacts.put(source)
    fingerprint = inspect_base(Base(BASE, str(embedded_base_path()))).fingerprint
    common = {**PRODUCT, "base": BASE, "base_fingerprint": fingerprint, "sha256": sha256}
    names: list[tuple[str, int | None]] = [(f"ft:{BASE}:s:{number}", None) for number in range(1, 11)]
    names += [(f"ft:{BASE}:s:1:ckpt-step-{step}", step) for step in (1, 2)]
    result_file = {"id": "file-result", "filename": "step_metrics.csv", "purpose": "fine-tune-results"}
    data.file("file-result").write_text("step\n")
    store.models.publish(
        [{**common, "name": name, "checkpoint_step": step} for name, step in names],
        job_id=job.id,
        result=FineTuningResult(trained_tokens=7),
        checkpoint_metrics={1: {"train_loss": 1.0}, 2: {"train_loss": 0.5}},
        result_file={**result_file, "bytes": 5, "sha256": "0" * 64},
    )
