"""TensorBoard and MLflow, by transformers' own callbacks. Of several ranks, the first alone has them.

Nothing that fails there ends a job: it is told once, and the run goes on without that report. A job that goes on
continues its run: TensorBoard drops the steps that are done again, and MLflow gets them twice.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerState

from tunewright.atomic import write_atomically
from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.trainer.spec import TrainingSpec

log = logging.getLogger("tunewright.trainer")

_EXPERIMENT = "tunewright"
_MLFLOW_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_DISABLE_TELEMETRY": "true",
}  # fmt: skip
"""A server that does not answer holds the run up for 20 s, once; by MLflow's defaults it would be for many minutes."""


class Tracker(TrainerCallback):  # type: ignore[misc]
    """Passes the Trainer's events on to a callback, until that fails. `close(failed)` ends what it has begun."""

    def __init__(
        self, name: str, events: EventLog, make: Callable[[], Any], close: Callable[[Any, bool], None]
    ) -> None:
        self._name = name
        self._events = events
        self._close = close
        self._callback: Any = None
        self._attempt("begin", lambda: setattr(self, "_callback", make()), begins=True)

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._attempt("begin", lambda: self._callback.on_train_begin(args, state, control, **kwargs))

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._attempt("log", lambda: self._callback.on_log(args, state, control, **kwargs))

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._attempt("finish", lambda: self._callback.on_train_end(args, state, control, **kwargs))

    def end(self, *, failed: bool) -> None:
        self._attempt("finish", lambda: self._close(self._callback, failed))
        self._callback = None

    def _attempt(self, what: str, call: Callable[[], None], *, begins: bool = False) -> None:
        if self._callback is None and not begins:
            return
        try:
            call()
        except Exception as error:  # of whatever type they and what they are built on raise
            self._callback = None
            log.warning("%s: cannot %s", self._name, what, exc_info=error)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            self._events.message(
                f"{self._name} failed to {what}, and nothing more is reported there: {reason}. The job goes on.",
                level="warn",
                data={"code": "integration_failed", "integration": self._name.lower()},
            )


def trackers(
    folder: JobFolder, spec: TrainingSpec, events: EventLog, resumed_at: int | None
) -> list[Tracker]:
    """Those that the spec names. `resumed_at`: the step of the checkpoint from which the run goes on."""
    found = []
    if spec.tensorboard:
        found.append(
            Tracker("TensorBoard", events, lambda: _tensorboard(folder, resumed_at), _close_tensorboard)
        )
    if spec.mlflow is not None:
        found.append(Tracker("MLflow", events, lambda: _mlflow(folder, spec), _close_mlflow))
    return found


def _tensorboard(folder: JobFolder, resumed_at: int | None) -> Any:
    from transformers.integrations import TensorBoardCallback

    callback = TensorBoardCallback()
    callback.logging_dir = str(folder.tensorboard)
    purge = None if resumed_at is None else resumed_at + 1
    # Files are named by the second: that of an attempt which ended within it would be replaced.
    attempt = len(list(folder.tensorboard.glob("*"))) + 1
    callback.tb_writer = callback._SummaryWriter(
        log_dir=callback.logging_dir,
        purge_step=purge,
        filename_suffix=f".{attempt}",
        flush_secs=1,  # tensorboardX's `flush` leaves what its thread has not written yet
    )
    return callback


def _close_tensorboard(callback: Any, failed: bool) -> None:
    if callback.tb_writer is not None:
        callback.tb_writer.close()


def _mlflow(folder: JobFolder, spec: TrainingSpec) -> Any:
    from transformers.integrations import MLflowCallback

    run = spec.mlflow
    assert run is not None, "it is looked at before"
    known = folder.read_mlflow_run()
    for name, value in _MLFLOW_DEFAULTS.items():
        os.environ.setdefault(name, value)
    tags = {"tunewright.job": spec.job_id, "tunewright.base": spec.base_name, **run.tags}
    os.environ |= {
        "MLFLOW_TRACKING_URI": run.tracking_uri, "MLFLOW_EXPERIMENT_NAME": run.experiment or _EXPERIMENT,
        "MLFLOW_TAGS": json.dumps(tags), **({"MLFLOW_RUN_ID": known} if known else {}),
    }  # fmt: skip

    class Callback(MLflowCallback):  # type: ignore[misc]
        def setup(self, args: Any, state: TrainerState, model: Any) -> None:
            super().setup(args, state, model)
            self._async_log = False  # else nobody learns that a metric was not stored
            run_id = self._ml_flow.active_run().info.run_id
            write_atomically(folder.mlflow_file, json.dumps({"run_id": run_id}))

    return Callback()


def _close_mlflow(callback: Any, failed: bool) -> None:
    if callback._ml_flow.active_run() is not None:
        callback._ml_flow.end_run("FAILED" if failed else "FINISHED")
