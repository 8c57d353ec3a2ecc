"""The states, each with one line of meaning, and the moves between them that the database allows."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """The state of a job, in the words of OpenAI's fine-tuning jobs."""

    VALIDATING_FILES = "validating_files"
    """Its data has not been read yet."""
    QUEUED = "queued"
    """Waiting for a device."""
    RUNNING = "running"
    """It is in one of the phases `run`, `publish` and `check`."""
    PAUSING = "pausing"
    """Asked to pause; its process is saving what is done."""
    PAUSED = "paused"
    """Stopped with a checkpoint, holding no device."""
    SUCCEEDED = "succeeded"
    """Its product is in the registry."""
    FAILED = "failed"
    """Its error says why."""
    CANCELLED = "cancelled"
    """Ended by its user."""

    @property
    def is_final(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


JOB_MOVES: dict[JobState, tuple[JobState, ...]] = {
    JobState.VALIDATING_FILES: (JobState.QUEUED, JobState.FAILED, JobState.CANCELLED),
    JobState.QUEUED: (JobState.RUNNING, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED),
    JobState.RUNNING: (
        JobState.PAUSING,
        JobState.QUEUED,
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.CANCELLED,
    ),
    JobState.PAUSING: (JobState.PAUSED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED),
    JobState.PAUSED: (JobState.QUEUED, JobState.CANCELLED),
}


class JobPhase(StrEnum):
    """What is being done with a job that has not ended. A job that has ended keeps its last phase."""

    PREPARE = "prepare"
    """Its inputs are checked, or it waits for a device."""
    RUN = "run"
    """It holds a device, and its process works or is started again."""
    PUBLISH = "publish"
    """Its process has succeeded, and its product is being listed."""
    CHECK = "check"
    """Its product is listed and held back until a check has judged it."""


class Source(StrEnum):
    """Where a model came from."""

    JOB = "job"
    """Trained here."""
    UPLOAD = "upload"
    """Sent with a request."""
    FOLDER = "folder"
    """Read from a folder of the server."""
    HUB = "hub"
    """Fetched from a hub."""
    EXPORT = "export"
    """Made of other models here, without training."""


class ModelState(StrEnum):
    """Of a model in the registry."""

    READY = "ready"
    """It may be served."""
    CHECKING = "checking"
    """It is held back until it has been checked."""
    QUARANTINED = "quarantined"
    """It failed a check: it is kept, and not served unless somebody forces it."""
    MERGE_ONLY = "merge_only"
    """An adapter of a kind that the engine does not serve: it can be merged."""


class Desired(StrEnum):
    """What a model's adapter is meant to be in the engine of its base; what became of that is its `Residency`."""

    LOADED = "loaded"
    """The engine is asked to hold it."""
    UNLOADED = "unloaded"
    """The engine need not hold it. Also of full models, which no engine loads beside its base."""


class Residency(StrEnum):
    """Of an adapter in one run of an engine."""

    LOADING = "loading"
    """The engine was asked to take it."""
    LOADED = "loaded"
    """The engine answers with it."""
    DRAINING = "draining"
    """No request is sent to it any more; the engine lets go of it after the last one."""
    FAILED = "failed"
    """The engine refused it; the row's error says why."""


class EngineState(StrEnum):
    """Of a vLLM server."""

    STOPPED = "stopped"
    """No process, and none wanted now."""
    STARTING = "starting"
    """Its process runs and does not answer yet."""
    READY = "ready"
    """It answers."""
    BACKOFF = "backoff"
    """It died; the reason says of what, and it will be started again."""
    FAILED = "failed"
    """It could not be started; the reason says why, and it is not tried again until somebody asks. Of deployments."""
    DRAINING = "draining"
    """No request is sent to it any more; it ends after the last one, and is gone then. Of deployments."""


class DeploymentState(StrEnum):
    """What a deployment is meant to be; what became of that is its engine's state."""

    ACTIVE = "active"
    """Served."""
    DRAINING = "draining"
    """Deleted; it ends after its last request."""
