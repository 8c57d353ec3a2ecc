"""The states and their meanings, and the transitions of jobs that the store allows."""

from __future__ import annotations

from enum import StrEnum


class FileStatus(StrEnum):
    """OpenAI's words for whether the rows of a file were checked."""

    UPLOADED = "uploaded"
    """They are being checked, or will be."""
    PROCESSED = "processed"
    """They have no fault; or the file has results, and no rows."""
    ERROR = "error"
    """The file cannot be used as it is."""


class JobState(StrEnum):
    """The state of a job, in the words of OpenAI's fine-tuning jobs."""

    VALIDATING_FILES = "validating_files"
    """Its data has not been read yet."""
    QUEUED = "queued"
    """Waiting for a device."""
    RUNNING = "running"
    """It is in one of the phases `run`, `publish`, `check` and `evaluate`."""
    PAUSING = "pausing"
    """Its process was asked to pause, and saves a checkpoint."""
    PAUSED = "paused"
    """Stopped with a checkpoint, holding no device."""
    SUCCEEDED = "succeeded"
    """Its product is in the registry."""
    FAILED = "failed"
    """Its error says why."""
    CANCELLED = "cancelled"
    """Ended by a user."""

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
    """The stage of a job that has not ended. A job that has ended keeps its last phase."""

    PREPARE = "prepare"
    """Its inputs are checked, or it waits for a device."""
    RUN = "run"
    """It holds a device, and its process runs or is started again."""
    PUBLISH = "publish"
    """Its process has succeeded, and its product is being listed."""
    CHECK = "check"
    """Its product is listed, but not served before a check has judged it."""
    EVALUATE = "evaluate"
    """Its product is listed and checked, and the evaluations that the job asked for run."""


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
    """Made here from other models, without training."""


class ModelKind(StrEnum):
    """What a model of the registry consists of."""

    ADAPTER = "adapter"
    """LoRA weights on a base."""
    FULL = "full"
    """All weights."""


class ModelMethod(StrEnum):
    """How a model of the registry was made."""

    LORA = "lora"
    QLORA = "qlora"
    FULL = "full"
    """Training of all weights."""
    REWARD = "reward"
    """Training of a model that gives answers scores, and writes none."""
    MERGED = "merged"
    AWQ = "awq"


class ModelState(StrEnum):
    """The state of a model in the registry."""

    READY = "ready"
    """It may be served."""
    CHECKING = "checking"
    """It is not served before it has been checked. Where nothing loads it, nothing checks it: it is shown as
    `UNCHECKED` then."""
    QUARANTINED = "quarantined"
    """It failed a check: it is kept, and not served unless a user forces it."""
    MERGE_ONLY = "merge_only"
    """An adapter that the engine cannot serve, but that can be merged."""


UNCHECKED = "unchecked"
"""Shown for an adapter that is not served before it has been checked, while nothing loads it."""


class Desired(StrEnum):
    """Whether the engine of its base should hold an adapter; the actual state is its `Residency`."""

    LOADED = "loaded"
    """The engine should hold it."""
    UNLOADED = "unloaded"
    """The engine need not hold it. Full models have this value too, since no engine loads them beside its base."""


class Residency(StrEnum):
    """The state of an adapter in one run of an engine."""

    LOADING = "loading"
    """The engine was asked to load it."""
    LOADED = "loaded"
    """The engine answers requests with it."""
    DRAINING = "draining"
    """No new request is sent to it; the engine unloads it after the last one."""
    FAILED = "failed"
    """The engine refused it; the row's error says why."""


class EngineState(StrEnum):
    """The state of a vLLM server."""

    STOPPED = "stopped"
    """It has no process yet, or not any more."""
    STARTING = "starting"
    """Its process runs and does not answer yet."""
    READY = "ready"
    """It answers."""
    BACKOFF = "backoff"
    """It ended, as the reason says, and will be started again."""
    FAILED = "failed"
    """It could not be started, as the reason says, and is not tried again until a user asks. Deployments only."""
    DRAINING = "draining"
    """No new request is sent to it; it ends after the last one, and is then removed. Deployments only."""


class DeploymentState(StrEnum):
    """The desired state of a deployment; the actual state is its engine's."""

    ACTIVE = "active"
    """It should be served."""
    DRAINING = "draining"
    """It was deleted, and ends after its last request."""


class DeliveryState(StrEnum):
    """The state of the delivery of an event to an endpoint."""

    PENDING = "pending"
    """It was not taken yet: the next attempt is due, or under way."""
    DELIVERED = "delivered"
    """The endpoint has answered with a 2xx."""
    DEAD_LETTER = "dead_letter"
    """All attempts have failed: it is kept, and sent again only on request."""
