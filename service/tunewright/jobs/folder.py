"""The job folder, through which the scheduler and the job's process communicate. Its files are written atomically."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from tunewright.atomic import write_atomically
from tunewright.log_files import parts

STOPPED_RESUMABLE = 75
"""Exit code of a process that was asked to stop and saved its progress (EX_TEMPFAIL)."""
DISK_FULL = 74
"""Exit code of a process that could not even write its result (EX_IOERR)."""


class Outcome(BaseModel):
    """How a run ended: the content of `result.json`, whatever the job's kind. The process writes it last: without it,
    the run has not ended."""

    status: Literal["succeeded", "failed"]
    error_code: str | None = None
    error_message: str | None = None
    report: dict[str, Any] | None = None
    """What was measured of the product, even where it is not published: the kind's report, as JSON."""


Spec = TypeVar("Spec", bound=BaseModel)
Result = TypeVar("Result", bound=Outcome)


class JobFolder:
    """Paths and atomic writes. Every file may be read while the job's process runs, or after it was killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec_file = path / "spec.json"
        self.events_file = path / "events.jsonl"
        self.log_file = path / "process.log"
        self._older_log_file = path / "trainer.log"  # its name in earlier versions
        self.process_file = path / "process.json"
        self.heartbeat_file = path / "heartbeat"
        self.result_file = path / "result.json"
        self.checkpoints = path / "checkpoints"
        self.adapter = path / "adapter"
        self.model = path / "model"
        self.work = path / "work"
        self.token_cache = path / "token-cache"
        self.reference = path / "reference"
        self.initial = path / "initial"
        self.policies = path / "policies"
        self.scores = path / "scores"
        self.trace_file = path / "trace.json"
        self.tensorboard = path / "tensorboard"
        self.mlflow_file = path / "mlflow.json"

    def write_spec(self, spec: BaseModel) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.spec_file, spec.model_dump_json(indent=2))

    def read_spec(self, spec: type[Spec]) -> Spec:
        """The content of `spec.json`. Raises OSError and ValueError."""
        return spec.model_validate_json(self.spec_file.read_text())

    def write_trace(self, headers: Mapping[str, str]) -> None:
        """Keep the trace of the request that created the job: its headers `traceparent` and `tracestate`."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.trace_file, json.dumps(dict(headers)))

    def read_trace(self) -> dict[str, str]:
        """Empty where that request was not traced."""
        try:
            return dict(json.loads(self.trace_file.read_text()))
        except (OSError, ValueError):
            return {}

    def read_mlflow_run(self) -> str | None:
        """The id of the job's run in MLflow; None where it has none yet."""
        try:
            return str(json.loads(self.mlflow_file.read_text())["run_id"])
        except (OSError, ValueError, LookupError):
            return None

    def write_result(self, result: Outcome, rank: int = 0) -> None:
        """Where several ranks fail at the same moment, each writes its own file, and the last one stays."""
        own = self.path / f"result-of-rank-{rank}.json" if rank else self.result_file
        write_atomically(own, result.model_dump_json(indent=2))
        if rank:
            own.replace(self.result_file)

    def read_result(self, result: type[Result]) -> Result | None:
        """The content of `result.json`; None where it is missing or incomplete."""
        try:
            return result.model_validate_json(self.result_file.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def read_outcome(self) -> Outcome | None:
        """How the run of a job of any kind ended."""
        return self.read_result(Outcome)

    def log_parts(self) -> list[Path]:
        """The files with the output of the job's processes, all attempts one after another; some may not exist."""
        return [self._older_log_file, *parts(self.log_file)]

    def beat(self) -> None:
        """Signal progress: called at every step, and within long ones."""
        self.heartbeat_file.touch()

    def last_beat(self) -> float:
        """Time of the last progress in Unix seconds; 0.0 for never."""
        try:
            return self.heartbeat_file.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def events_size(self) -> int:
        """Size of the events file in bytes."""
        try:
            return self.events_file.stat().st_size
        except FileNotFoundError:
            return 0

    def read_events(self, offset: int) -> tuple[list[dict[str, Any]], int]:
        """The complete lines from byte `offset` on, and the offset behind them. An incomplete last line is left for the
        next call."""
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
                continue  # the incomplete line of a killed process, ended by the next one's newline
        return events, offset + end

    def last_events(self, most: int) -> list[dict[str, Any]]:
        """The events in the last `most` bytes of the file."""
        return self.read_events(max(0, self.events_size() - most))[0]  # the rest of a line is no JSON

    def unfinished(self, product: Path) -> Path:
        """The path of a product until it is complete."""
        return self.path / f".{product.name}.tmp"

    def policy(self, sha256: str) -> Path:
        """The PEFT folder of the weights with which the job samples from the engine."""
        return self.policies / sha256

    def converted(self, step: int) -> Path:
        """The adapter of a checkpoint as it is published, where that is not the checkpoint itself."""
        return self.path / f"converted-{step}"

    def remove_products(self) -> None:
        """Remove products, complete or not, checkpoints, and tokenized files that no other job shares."""
        for product in (self.adapter, self.model):
            shutil.rmtree(self.unfinished(product), ignore_errors=True)
            shutil.rmtree(product, ignore_errors=True)
        for folder in (
            self.work, self.checkpoints, self.token_cache, self.reference, self.initial, self.policies,
            self.scores,
            self.path / "wandb",
            *self.path.glob("converted-*"),
        ):  # fmt: skip
            shutil.rmtree(folder, ignore_errors=True)

    def complete_checkpoints(self) -> Iterator[tuple[int, Path]]:
        """Steps and folders of the complete checkpoints, newest first. A folder gets its name only when all of it is on
        disk."""
        found = []
        for path in self.checkpoints.glob("step-*"):
            number = path.name.removeprefix("step-")
            if number.isdigit() and (path / "complete.json").is_file():
                found.append((int(number), path))
        yield from sorted(found, reverse=True)


class EventLog:
    """Appends to `events.jsonl`. Each line is written with one write call, and flushed to the system.

    Where a job has several processes, only the one of rank 0 writes.
    """

    def __init__(self, folder: JobFolder, rank: int = 0) -> None:
        self._descriptor: int | None = None
        if rank == 0:
            self._descriptor = os.open(folder.events_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            if os.fstat(self._descriptor).st_size:
                os.write(self._descriptor, b"\n")  # end a line that a killed process may have left incomplete

    def message(self, text: str, level: str = "info", data: dict[str, Any] | None = None) -> None:
        self._write({"type": "message", "level": level, "message": text, "data": data})

    def metrics(self, text: str, data: dict[str, Any]) -> None:
        self._write({"type": "metrics", "level": "info", "message": text, "data": data})

    def _write(self, event: dict[str, Any]) -> None:
        if self._descriptor is None:
            return
        line = (json.dumps({"created_at": time.time(), **event}, allow_nan=False) + "\n").encode()
        if os.write(self._descriptor, line) < len(line):  # the disk became full within the line
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
