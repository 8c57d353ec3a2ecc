"""Reports a run to Weights & Biases: OpenAI's integration `wandb`.

The key is the operator's, and in the environment of this process alone, from which it is taken before anything else is
started. Nothing that fails here ends a job: it is told once, and the run goes on without the report.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.trainer.spec import TrainingSpec

log = logging.getLogger("tunewright.trainer")

KEY_VARIABLE = "WANDB_API_KEY"
_SECONDS = 30
"""That a start and an end may take: as long as nothing is heard from the trainer."""


class WandbReport:
    """A run of the project, named by the job: a job that goes on continues it, and steps that it has are kept."""

    def __init__(self, folder: JobFolder, spec: TrainingSpec, events: EventLog) -> None:
        self._events = events
        self._run: Any = None
        key = os.environ.pop(KEY_VARIABLE, None)
        if spec.wandb is not None and key is not None:
            self._attempt("begin", lambda: self._begin(folder, spec, key))

    def _begin(self, folder: JobFolder, spec: TrainingSpec, key: str) -> None:
        import wandb

        project = spec.wandb
        assert project is not None, "it is looked at before"
        self._run = wandb.init(
            project=project.project,
            entity=project.entity,
            name=project.name or spec.job_id,
            tags=list(project.tags) or None,
            id=spec.job_id,
            resume="allow",
            dir=str(folder.path),
            config={
                "model": spec.base_name, "seed": spec.seed, **spec.tuning.model_dump(exclude_none=True),
            },
            settings=wandb.Settings(
                api_key=key, base_url=project.base_url or "https://api.wandb.ai", init_timeout=_SECONDS,
                finish_timeout=_SECONDS, finish_timeout_raises=True, console="off", silent=True, disable_git=True,
                disable_code=True, disable_job_creation=True, x_disable_meta=True,
            ),
        )  # fmt: skip
        where = f": {self._run.url}" if self._run.url else ""  # offline, by WANDB_MODE, there is none
        self._events.message(
            f"Reported to Weights & Biases, project {project.project}{where}",
            data={"integration": "wandb", "url": self._run.url},
        )

    def metrics(self, data: Mapping[str, Any]) -> None:
        """The data of a metrics event."""
        numbers = {name: value for name, value in data.items() if value is not None and name != "step"}
        self._attempt("log", lambda: self._run.log(numbers, step=data["step"]))

    def end(self, *, failed: bool) -> None:
        self._attempt("finish", lambda: self._run.finish(exit_code=int(failed)))
        self._run = None

    def _attempt(self, what: str, call: Any) -> None:
        if self._run is None and what != "begin":
            return
        try:
            call()
        except Exception as error:  # wandb raises many types, its own and those of what it is built on
            self._run = None
            log.warning("wandb: cannot %s", what, exc_info=error)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            self._events.message(
                f"Weights & Biases failed to {what}, and nothing more is reported there: {reason}. The job goes on.",
                level="warn",
                data={"code": "integration_failed", "integration": "wandb"},
            )
