"""A data folder as it is after some use, and what a backup must restore of it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rows import FILE, PRODUCT, create_job
from tunewright.kinds.fine_tuning.models import FineTuningResult
from tunewright.registry.content import adapter_sha256
from tunewright.registry.workspace import Workspace
from tunewright.store.database import Database
from tunewright.store.records import Job
from tunewright.store.states import JobState
from tunewright.store.store import Store

EVENT = '{"type": "message", "level": "info", "message": "m", "data": null}\n'


def url_of(data: Workspace) -> str:
    return f"sqlite:///{data.path / 'tunewright.db'}"


def new_store(path: Path) -> tuple[Workspace, Store]:
    data = Workspace(path)
    data.create()
    database = Database(url_of(data))
    database.upgrade()
    database.close()
    store = Store.open(url_of(data))
    add_file(data, store, FILE["id"], b"{}\n")
    return data, store


def add_file(data: Workspace, store: Store, id: str, content: bytes) -> None:
    """Bytes first, then the row: as uploads do."""
    data.file(id).write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    store.files.add(**{**FILE, "id": id, "size": len(content), "sha256": sha256})


def new_job(store: Store, state: JobState, **values: Any) -> Job:
    return create_job(store, base="missing", model="missing", state=state, **values)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def job_folder(data: Workspace, job: Job, *, events: int = 1) -> Path:
    """The job's spec, events and log, and files that belong to a running process only."""
    folder = data.job(job.id)
    write(folder / "spec.json", "{}")
    write(folder / "events.jsonl", EVENT * events)
    write(folder / "trainer.log", "a line\n")
    for name in ("process.json", "lock", "heartbeat", "work/checkpoint-9/model.bin", ".adapter.tmp/half"):
        write(folder / name, "")
    return folder


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / "checkpoints" / f"step-{step}"
    names = ["adapter_model.safetensors", "optimizer.pt", "rng/state.pth"]
    for name in names:
        write(path / name, f"{name} at {step}")
    write(path / "complete.json", json.dumps({"step": step, "files": dict.fromkeys(names, "")}))
    return path


def publish_adapter(data: Workspace, store: Store, job: Job, name: str, weights: bytes = b"weights") -> str:
    """The hash of the artifact."""
    source = data.tmp / f"adapter-{job.id}"
    source.mkdir()
    config = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj"],
        "lora_dropout": 0.0,
    }
    (source / "adapter_config.json").write_text(json.dumps(config))
    (source / "adapter_model.safetensors").write_bytes(weights)
    sha256 = data.artifacts.put(source)
    content = b"step\n"
    data.file(f"file-result-{job.id}").write_bytes(content)
    assert store.models.publish(
        [{**PRODUCT, "name": name, "sha256": sha256}],
        job_id=job.id,
        result=FineTuningResult(trained_tokens=7),
        checkpoint_metrics={},
        result_file={
            "id": f"file-result-{job.id}", "filename": "step_metrics.csv", "purpose": "fine-tune-results",
            "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
        },
    )  # fmt: skip
    return sha256


def rows_of(path: Path) -> dict[str, list[dict[str, Any]]]:
    """What the database at `path` lists."""
    store = Store.open(f"sqlite:///{path}")
    try:
        listed = {
            "files": [asdict(file) for file in store.files.list(purpose=None, after=None, limit=10**6)[0]],
            "models": [asdict(model) for model in store.models.list()[0]],
            "jobs": [asdict(job) for job in store.jobs.list(kind="fine_tuning", after=None, limit=10**6)[0]],
        }
    finally:
        store.close()
    return listed


def bytes_in(folder: Path, *names: str) -> dict[str, bytes]:
    """The contents of all files in some of its folders, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for name in names
        for path in sorted((folder / name).rglob("*"))
        if path.is_file()
    }


def missing(data: Workspace) -> list[str]:
    """What the database lists and the folder lacks or has with other content."""
    listed = rows_of(data.path / "tunewright.db")
    wrong = []
    for file in listed["files"]:
        path = data.file(file["id"])
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != file["sha256"]:
            wrong.append(f"files/{file['id']}")
    for model in listed["models"]:
        folder = data.artifacts.local(model["sha256"])
        if not folder.is_dir() or adapter_sha256(folder) != model["sha256"]:
            wrong.append(f"artifacts/{model['sha256']}")
    for job in listed["jobs"]:
        events = data.job(job["id"]) / "events.jsonl"
        if job["events_offset"] > (events.stat().st_size if events.exists() else 0):
            wrong.append(f"jobs/{job['id']}/events.jsonl")
    return wrong


class Deadly:
    """Kills this process at the n-th call of some of `os`'s functions: just before the call, or just after it."""

    def __init__(self, at: int, *names: str, after: bool) -> None:
        self._at, self._after, self._count = at, after, 0
        for name in names:
            setattr(os, name, self._deadly(getattr(os, name)))

    def _deadly(self, function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._count += 1
            if self._count == self._at and not self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if self._count == self._at and self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped


def until(condition: Any, seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.005)
    return value
