"""Frozen records: a row of each table as the rest of the service sees it. Times are Unix seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunewright.store.states import EngineState, JobState, Residency


@dataclass(frozen=True)
class FileRecord:
    seq: int
    id: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    created_at: float


@dataclass(frozen=True)
class Job:
    seq: int
    id: str
    state: JobState
    created_at: float
    started_at: float | None
    finished_at: float | None
    model: str
    base: str
    parent_sha256: str | None
    training_file: str
    validation_file: str | None
    suffix: str | None
    seed: int
    job_metadata: dict[str, str] | None
    chat_template: str | None
    method: dict[str, Any]
    tuning: dict[str, Any]
    resolved: dict[str, Any] | None
    fine_tuned_model: str | None
    trained_tokens: int | None
    error: dict[str, Any] | None
    progress: dict[str, Any] | None
    idempotency_key: str | None
    fingerprint: str
    device: str | None
    attempt: int
    events_offset: int
    last_step: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", JobState(self.state))


@dataclass(frozen=True)
class JobEvent:
    seq: int
    id: str
    job_id: str
    created_at: float
    level: str
    type: str
    message: str
    data: dict[str, Any] | None


@dataclass(frozen=True)
class Checkpoint:
    seq: int
    id: str
    job_id: str
    step: int
    model: str
    metrics: dict[str, float]
    created_at: float


@dataclass(frozen=True)
class TunedModel:
    """An adapter or a full model that a job made; its weights are the artifact `sha256`."""

    seq: int
    id: str
    name: str
    kind: str
    sha256: str
    base: str
    base_fingerprint: str
    job_id: str | None
    checkpoint_step: int | None
    method: str
    rank: int | None
    alpha: float | None
    target_modules: list[str] | None
    chat_template: str | None
    bytes: int
    created_at: float
    desired: str


@dataclass(frozen=True)
class Engine:
    name: str
    state: EngineState
    run: int
    socket: str | None
    reason: str | None
    started_at: float | None
    ready_at: float | None
    info: dict[str, Any] | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", EngineState(self.state))


@dataclass(frozen=True)
class ResidencyRow:
    engine: str
    run: int
    sha256: str
    state: Residency
    error: str | None
    at: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", Residency(self.state))
