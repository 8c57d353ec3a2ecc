"""The callbacks of a training run by any method: metrics, checkpoints, stopping and the heartbeat."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunewright.atomic import publish_folder
from tunewright.jobs.failure import TrainingFailed
from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.jobs.process import rank
from tunewright.plan.time import Measured
from tunewright.trainer import ranks
from tunewright.trainer.best import BestCallback
from tunewright.trainer.metrics import finite, held_out, measures, told
from tunewright.trainer.planned import device_name

KEPT_EPOCHS = 3
"""How many checkpoints at the ends of epochs are kept for use, as in OpenAI's API."""
KEPT_RECENT = 2
"""How many of the newest checkpoints are kept to resume from: a crash may leave the last one incomplete."""


class HeartbeatCallback(TrainerCallback):  # type: ignore[misc]
    """Renews the heartbeat of the job folder; a trainer whose heartbeat is too old is taken to hang. Of several ranks
    the first renews it, which soon waits for one that hangs."""

    def __init__(self, folder: JobFolder) -> None:
        self._folder = folder
        self._last = -math.inf

    def beat(self, *_: Any, **__: Any) -> None:
        """Renew the heartbeat, at most once a second; cheap enough to be called for every row."""
        now = time.monotonic()
        if now - self._last >= 1.0:
            self._last = now
            if rank() == 0:
                self._folder.beat()

    on_step_begin = on_substep_end = on_step_end = on_prediction_step = on_save = beat


class MetricsCallback(TrainerCallback):  # type: ignore[misc]
    """Writes the Trainer's logs as metric events with OpenAI's keys. Raises TrainingFailed for a non-finite loss."""

    def __init__(self, events: EventLog, report: Callable[[dict[str, Any]], None] | None = None) -> None:
        """`report`: called with the data of each event."""
        self._events = events
        self._report = report
        self._clock = time.monotonic()
        self._tokens_before: float | None = None
        self._started_at_step: int | None = None
        self._started = time.monotonic()
        self._pending: dict[str, Any] | None = None
        self.latest: dict[str, float] = {}
        self.process = psutil.Process()
        self._interval_began: float | None = None
        """Time at which the first step began since the last was logged."""
        self._step_seconds = 0.0
        self._first_step = self._steps = 0
        """The step of the first log, and the steps since."""
        self._first_tokens: float | None = None
        self._peak = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._started_at_step = state.global_step
        self._started = self._clock = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        if "loss" in logs:
            self._count_steps()
            self.flush()
            self._pending = self._metrics(state, logs)
        elif "eval_loss" in logs:
            self.add(held_out(logs))

    def add(self, found: dict[str, float]) -> None:
        """To the metrics, and to the event of the last step."""
        self.latest |= found
        if self._pending is not None:
            self._pending |= found

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.flush()
        if self._interval_began is None:
            self._interval_began = time.monotonic()

    def _count_steps(self) -> None:
        """Add the steps since the last log to the time. What is between a log and the next step is evaluations and
        checkpoints; the first log is of the first step, which is slower than others."""
        began, self._interval_began = self._interval_began, None
        if self._tokens_before is not None and began is not None:
            self._step_seconds += time.monotonic() - began

    def measured(
        self,
        longest: int,
        waited: float,
        *,
        compiled: bool = False,
        padding: float = 0.0,
        reference_seconds: float | None = None,
    ) -> Measured | None:
        """What the steps of this process took, on examples of at most `longest` tokens, for which they have waited so
        many seconds; None before the second. The rest is known to the caller."""
        if not self._step_seconds or self._first_tokens is None or self._tokens_before is None:
            return None
        return Measured(
            device=device_name(),
            seconds=self._step_seconds,
            tokens=int(self._tokens_before - self._first_tokens),
            length=longest,
            peak_bytes=self._peak,
            compiled=compiled,
            waited=waited,
            steps=self._steps,
            padding=padding,
            reference_seconds=reference_seconds,
        )

    def flush(self) -> None:
        """Write the event of the last step, which was held back since an evaluation might still add to it."""
        if self._pending is None:
            return
        data, self._pending = self._pending, None
        text = f"Step {data['step']}/{data['total_steps']}: training loss={told(data, 'train_')}"
        if "valid_loss" in data:
            text += f", validation loss={told(data, 'valid_')}"
        self._events.metrics(text, data)
        if self._report is not None:
            self._report(data)

    def _metrics(self, state: TrainerState, logs: dict[str, Any]) -> dict[str, Any]:
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise TrainingFailed(
                "loss_not_finite",
                f"the loss became {loss} at step {state.global_step}: lower the learning rate, or look for "
                "broken rows in the data",
            )
        now = time.monotonic()
        tokens, memory = float(logs.get("num_tokens", 0.0)), ranks.largest(self._memory())
        self._peak = max(self._peak, memory)
        before = self._tokens_before
        if before is None:
            self._first_tokens, self._first_step = tokens, state.global_step
        self._steps = state.global_step - self._first_step
        rate = (tokens - before) / max(now - self._clock, 1e-6) if before is not None else None
        self._tokens_before, self._clock = tokens, now
        done = state.global_step - (self._started_at_step or 0)
        eta = (now - self._started) / max(done, 1) * (state.max_steps - state.global_step)
        measured = {"train_loss": loss, **measures(logs, prefix="train_")}
        metrics: dict[str, Any] = {
            "step": state.global_step,
            "total_steps": state.max_steps,
            "epoch": state.epoch,
            **measured,
            "learning_rate": logs.get("learning_rate"),
            "grad_norm": finite(logs.get("grad_norm")),
            "tokens_per_second": rate,
            "memory_bytes": memory,
            "eta_seconds": eta,
        }
        self.latest |= measured
        return metrics

    def _memory(self) -> int:
        """Peak bytes allocated on this process's GPU, or resident bytes of it on the CPU."""
        if torch.cuda.is_available():
            return int(torch.cuda.max_memory_allocated())
        return int(self.process.memory_info().rss)


class CheckpointCallback(TrainerCallback):  # type: ignore[misc]
    """Saves checkpoints at the end of each epoch and every `interval` seconds in between, and removes old ones.

    A checkpoint is published as a whole folder. The best one, where there is one (`trainer.best`), is kept too.
    """

    def __init__(
        self, folder: JobFolder, metrics: MetricsCallback, interval: float, best: BestCallback | None = None
    ) -> None:
        self._folder = folder
        self._metrics = metrics
        self._interval = interval
        self._best = best or BestCallback()
        self._last_save = time.monotonic()
        self._save_began = 0.0
        self._saved_at: int | None = None
        self._stop = False
        self.stopped = False
        self.usable_steps: list[int] = [
            step for step, path in folder.complete_checkpoints() if _manifest(path).get("usable")
        ]

    def ask_to_stop(self) -> None:
        """Save a checkpoint after the current step, then stop. Safe to call in a signal handler."""
        self._stop = True

    @property
    def is_asked_to_stop(self) -> bool:
        return self._stop

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        due = time.monotonic() - self._last_save > self._interval
        stop, due = ranks.said_by_first(self._stop, due)
        if _ends_epoch(state):
            # The evaluation is added to this step's event. on_epoch_end saves.
            control.should_log = True
        elif stop:
            control.should_log = control.should_save = control.should_training_stop = self.stopped = True
        elif due and state.global_step % state.logging_steps == 0:
            # Only at a logged step: resuming in between would lose part of the next logged mean loss.
            control.should_save = True
        self._save_began = time.monotonic()
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if not _ends_epoch(state):
            # Stopped within the epoch; on_step_end has saved.
            control.should_evaluate = False
            return control
        self._save_began = time.monotonic()
        control.should_save = state.global_step != self._saved_at  # it may have been the best so far
        (stop,) = ranks.said_by_first(self._stop)
        if stop and state.global_step < state.max_steps:
            control.should_training_stop = self.stopped = True
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._metrics.flush()
        self._saved_at = state.global_step
        ranks.wait_for_all()  # each has written its random states
        if rank() != 0:
            return
        step = state.global_step
        saved = self._folder.work / f"checkpoint-{step}"
        target = self._path(step)
        usable = _ends_epoch(state)
        if target.exists() and not (target / "complete.json").is_file():
            shutil.rmtree(target)
        if not target.exists():
            manifest = {
                "step": step,
                "usable": usable,
                "metrics": dict(self._metrics.latest),
                "files": {
                    str(file.relative_to(saved)): sha256_of(file)
                    for file in sorted(saved.rglob("*"))
                    if file.is_file()
                },
            }
            (saved / "complete.json").write_text(json.dumps(manifest, indent=1))
            self._folder.checkpoints.mkdir(exist_ok=True)
            publish_folder(saved, target)
            if usable:
                self.usable_steps.append(step)
        else:
            shutil.rmtree(saved, ignore_errors=True)
        self._prune()
        now = time.monotonic()
        # Saving takes at most 5 % of the time.
        self._interval = max(self._interval, 20 * (now - self._save_began))
        self._last_save = now

    def usable(self) -> dict[int, dict[str, float]]:
        """Step and metrics of the checkpoints that are kept for use."""
        return {
            step: _manifest(path).get("metrics", {})
            for step, path in self._folder.complete_checkpoints()
            if step in self.usable_steps
        }

    def best(self) -> Path | None:
        """The folder of the best checkpoint; None for a run without a metric, and where nothing was evaluated."""
        best = self._best.found
        return self._path(best.step) if best is not None else None

    def metrics_of(self, step: int) -> dict[str, float]:
        """Those of the checkpoint at a step."""
        return dict(_manifest(self._path(step)).get("metrics", {}))

    def _path(self, step: int) -> Path:
        return self._folder.checkpoints / f"step-{step}"

    def _prune(self) -> None:
        self.usable_steps = sorted(set(self.usable_steps))[-KEPT_EPOCHS:]
        recent = [step for step, _ in self._folder.complete_checkpoints()][:KEPT_RECENT]
        best = self._best.found
        kept = {*recent, *self.usable_steps, *([best.step] if best is not None else [])}
        for step, path in self._folder.complete_checkpoints():
            if step not in kept:
                shutil.rmtree(path, ignore_errors=True)


def latest_checkpoint(folder: JobFolder) -> Path | None:
    """The newest checkpoint whose files all have the hashes that were saved with it; None where there is none. Rank 0
    removes newer ones, which the run saves again; other ranks ask after it."""
    for _, path in folder.complete_checkpoints():
        files = _manifest(path).get("files", {})
        if files and all(
            (path / name).is_file() and sha256_of(path / name) == digest for name, digest in files.items()
        ):
            return path
        if rank() == 0:
            shutil.rmtree(path, ignore_errors=True)
    return None


def _ends_epoch(state: TrainerState) -> bool:
    """Whether the step just done was the last of an epoch."""
    return state.epoch is not None and abs(state.epoch - round(state.epoch)) < 1e-6


def _manifest(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((path / "complete.json").read_text()))
    except (OSError, ValueError):
        return {}


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
