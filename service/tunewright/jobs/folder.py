"""The job folder: what the scheduler writes, what the trainer writes, and how each is made whole or absent."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from tunewright.atomic import write_atomically

STOPPED_RESUMABLE = 75
"""Exit code of a trainer that was asked to stop and saved a checkpoint (EX_TEMPFAIL)."""


DISK_FULL = 74
"""Exit code of a trainer that could not even write its result (EX_IOERR)."""


class JobSpec(BaseModel):
    """`spec.json`: all a trainer is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    base_name: str
    base_hub_id: str | None = None
    base_path: str
    trust_remote_code: bool = False
    parent_adapter: str | None = None
    """A PEFT folder to go on from."""
    training_file: str
    validation_file: str | None = None
    chat_template: str | None = None
    """Takes the place of the model's own."""
    seed: int
    device: str
    """`cpu` or `cuda`; which GPU is the environment's business."""
    tuning: dict[str, Any]
    """A `plan.defaults.Resolved`, as a dict."""
    checkpoint_seconds: float = 60.0
    """Time between checkpoints, beside those at the end of each epoch."""


class Outcome(BaseModel):
    """What every job's `result.json` says: how it ended. It is the last thing that its process writes: without it, the
    run is not over."""

    status: Literal["succeeded", "failed"]
    error_code: str | None = None
    error_message: str | None = None
    report: dict[str, Any] | None = None
    """What was measured of its product, also of one that is not to be published."""


class JobResult(Outcome):
    """A trainer's `result.json`."""

    trained_tokens: int = 0
    metrics: dict[str, float] = {}
    checkpoints: dict[int, dict[str, float]] = {}
    """Step and metrics of the checkpoints at the ends of the last epochs, whose adapters can be used."""


Result = TypeVar("Result", bound=Outcome)


class JobFolder:
    """Paths and atomic writes. Any of it may be looked at while a trainer runs, or after it was killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec_file = path / "spec.json"
        self.events_file = path / "events.jsonl"
        self.log_file = path / "trainer.log"
        self.process_file = path / "process.json"
        self.heartbeat_file = path / "heartbeat"
        self.result_file = path / "result.json"
        self.checkpoints = path / "checkpoints"
        self.adapter = path / "adapter"
        self.model = path / "model"
        self.work = path / "work"

    def write_spec(self, spec: BaseModel) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.spec_file, spec.model_dump_json(indent=2))

    def read_spec(self) -> JobSpec:
        return JobSpec.model_validate_json(self.spec_file.read_text())

    def write_result(self, result: Outcome) -> None:
        write_atomically(self.result_file, result.model_dump_json(indent=2))

    def read_result(self) -> JobResult | None:
        return self._read(JobResult)

    def read_outcome(self) -> Outcome | None:
        """Of a job of any kind."""
        return self._read(Outcome)

    def _read(self, result: type[Result]) -> Result | None:
        try:
            return result.model_validate_json(self.result_file.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def beat(self) -> None:
        """The trainer gets on: called at every step, and within long ones."""
        self.heartbeat_file.touch()

    def last_beat(self) -> float:
        """When it did, in Unix seconds; 0.0 for never."""
        try:
            return self.heartbeat_file.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def events_size(self) -> int:
        """Bytes of the events file."""
        try:
            return self.events_file.stat().st_size
        except FileNotFoundError:
            return 0

    def read_events(self, offset: int) -> tuple[list[dict[str, Any]], int]:
        """Whole lines from byte `offset` on, and the offset behind them. A torn last line waits for its rest."""
        try:
            with self.events_file.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return [], offset
        end = data.rfind(b"\n") + 1
        events = []
        for line in data[:end].splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:
                continue  # the half line of a killed trainer, closed by the next one's newline
        return events, offset + end

    def unfinished(self, product: Path) -> Path:
        """Where a product lies until it is complete."""
        return self.path / f".{product.name}.tmp"

    def remove_products(self) -> None:
        """Whole ones and half ones, checkpoints too."""
        for product in (self.adapter, self.model):
            shutil.rmtree(self.unfinished(product), ignore_errors=True)
            shutil.rmtree(product, ignore_errors=True)
        for folder in (self.work, self.checkpoints):
            shutil.rmtree(folder, ignore_errors=True)

    def complete_checkpoints(self) -> Iterator[tuple[int, Path]]:
        """(step, folder), newest first. A folder appears under its name only when all of it is on disk."""
        found = []
        for path in self.checkpoints.glob("step-*"):
            number = path.name.removeprefix("step-")
            if number.isdigit() and (path / "complete.json").is_file():
                found.append((int(number), path))
        yield from sorted(found, reverse=True)


class EventLog:
    """Appends to `events.jsonl`. A line is written whole, with one write call, and flushed to the system."""

    def __init__(self, folder: JobFolder) -> None:
        self._descriptor = os.open(folder.events_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if os.fstat(self._descriptor).st_size:
            os.write(self._descriptor, b"\n")  # end what a killed trainer may have left half-written

    def message(self, text: str, level: str = "info", data: dict[str, Any] | None = None) -> None:
        self._write({"type": "message", "level": level, "message": text, "data": data})

    def metrics(self, text: str, data: dict[str, Any]) -> None:
        self._write({"type": "metrics", "level": "info", "message": text, "data": data})

    def _write(self, event: dict[str, Any]) -> None:
        line = (json.dumps({"created_at": time.time(), **event}, allow_nan=False) + "\n").encode()
        if os.write(self._descriptor, line) < len(line):
            raise OSError(
                errno.ENOSPC, os.strerror(errno.ENOSPC)
            )  # as much was written as there was room for
