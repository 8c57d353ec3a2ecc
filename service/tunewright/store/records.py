"""Frozen records: a row of each table as the rest of the service sees it. Times are Unix seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tunewright.jobs.kinds import JobError, JobProgress, JobResult
from tunewright.registry.aliases import AliasGuard, AliasShadow, AliasTarget
from tunewright.store.states import (
    DeploymentState,
    Desired,
    EngineState,
    JobPhase,
    JobState,
    ModelState,
    Residency,
    Source,
)


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
class JobInput:
    """What a job is made from: an uploaded file, or the weights of a model."""

    role: str
    file_id: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Job:
    """A job of any kind. `request`, `resolved`, `result` and `report` are models of its kind (`jobs.kinds`)."""

    seq: int
    id: str
    kind: str
    state: JobState
    phase: JobPhase
    created_at: float
    started_at: float | None
    finished_at: float | None
    base: str
    seed: int
    metadata: dict[str, str] | None
    request: BaseModel
    resolved: BaseModel | None
    result: JobResult | None
    report: BaseModel | None
    error: JobError | None
    progress: JobProgress | None
    idempotency_key: str | None
    fingerprint: str
    attempt: int
    events_offset: int
    last_step: int
    inputs: tuple[JobInput, ...]
    devices: tuple[str, ...]

    def file(self, role: str) -> str | None:
        """Id of the file that the job has in this role."""
        return next((one.file_id for one in self.inputs if one.role == role and one.file_id), None)

    def weights(self, role: str) -> list[str]:
        """Hashes of the weights that the job has in this role, in their order."""
        return [one.sha256 for one in self.inputs if one.role == role and one.sha256]

    @property
    def device(self) -> str | None:
        """The first device that it holds."""
        return self.devices[0] if self.devices else None

    @property
    def model(self) -> str | None:
        """Public name of its product."""
        return self.result.model if self.result else None


@dataclass(frozen=True)
class NewJob:
    """A job to be created."""

    kind: str
    base: str
    request: BaseModel
    seed: int
    inputs: tuple[JobInput, ...] = ()
    metadata: dict[str, str] | None = None
    idempotency_key: str | None = None
    fingerprint: str = ""

    def position_of(self, one: JobInput) -> int:
        """The position of an input among those of its role, from 0."""
        return [other for other in self.inputs if other.role == one.role].index(one)


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
class Lineage:
    """What a model was made from; None where it does not apply or is not known. Files are named by id and content."""

    parent_sha256: str | None = None
    """Weights that its training went on from."""
    training_file: str | None = None
    training_sha256: str | None = None
    validation_file: str | None = None
    validation_sha256: str | None = None
    seed: int | None = None
    metrics: dict[str, float] | None = None
    """The last losses and accuracies of its training."""
    origin: str | None = None
    """Of a registered adapter: the file's name, the folder, or the hub's id."""
    revision: str | None = None
    """The hub's commit."""
    created_by: str | None = None
    models: list[dict[str, Any]] | None = None
    """The adapters that an export was made of: model, sha256 and weight of each."""


@dataclass(frozen=True)
class TunedModel:
    """An adapter or a full model, made by a job or registered; its weights are the artifact `sha256`."""

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
    desired: Desired
    source: Source
    lineage: Lineage | None
    state: ModelState
    parity: dict[str, Any] | None
    pinned: bool
    last_used_at: float | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "desired", Desired(self.desired))
        object.__setattr__(self, "source", Source(self.source))
        object.__setattr__(self, "state", ModelState(self.state))
        if isinstance(self.lineage, dict):
            object.__setattr__(self, "lineage", Lineage(**self.lineage))


class EngineInfo(BaseModel):
    """How a run of an engine was started. The fields without a default are those that every version has written."""

    model_config = ConfigDict(frozen=True)

    device: str
    """cpu, or cuda:N."""
    internal_name: str
    """What the engine calls its base."""
    fingerprint: str
    """Of the base, as `registry.bases.BaseInfo` has it."""
    path: Path | None = None
    """Folder of the base; None in a row of a version that did not write it, until the engine starts again."""
    has_chat_template: bool = True
    max_model_len: int | None = None
    """Tokens."""
    vocab_size: int | None = None
    """Number of tokens, where the base's config has it."""
    quantization: str | None = None
    """How the base's weights are packed: awq, gptq, ..."""
    enable_lora: bool = True
    max_lora_rank: int | None = None
    max_adapters: int = 0
    """That it can hold."""
    trust_remote_code: bool = False
    deployment: str | None = None
    """The deployment's id; None of a base."""


@dataclass(frozen=True)
class Engine:
    name: str
    state: EngineState
    run: int
    socket: str | None
    reason: str | None
    started_at: float | None
    ready_at: float | None
    info: EngineInfo | None
    """None until it was started once."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", EngineState(self.state))
        if isinstance(self.info, dict):
            object.__setattr__(self, "info", EngineInfo.model_validate(self.info))

    @property
    def is_deployed(self) -> bool:
        """Whether this run is a deployment's, which may be drained; bases stay as long as the service."""
        return self.info is not None and self.info.deployment is not None


@dataclass(frozen=True)
class Deployment:
    """A model that is served beside the bases. Its engine, named like the model, says what became of it."""

    seq: int
    id: str
    model: str
    asked: dict[str, Any]
    """Options of its engine as they were given."""
    options: dict[str, Any]
    """What they became, fields of `engine.command.EngineOptions`."""
    created_at: float
    state: DeploymentState
    drain_until: float | None
    failures: int
    """Starts in a row that ended without its ever having been ready."""
    was_ready: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", DeploymentState(self.state))

    @property
    def is_draining(self) -> bool:
        return self.state is DeploymentState.DRAINING


@dataclass(frozen=True)
class ResidencyRow:
    engine: str
    run: int
    sha256: str
    state: Residency
    error: str | None
    at: float
    number: int | None
    """Of a loaded adapter in the memory of vLLM's workers."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", Residency(self.state))


@dataclass(frozen=True)
class ModelWithEngine:
    """A model, with the engine of its base (None where that is not served), and what the engine holds of it."""

    model: TunedModel
    engine: Engine | None
    held: ResidencyRow | None

    @property
    def state(self) -> str:
        """Of an adapter: loaded, loading, unloaded or failed in its engine; or why it is held back from it."""
        if self.model.state is not ModelState.READY:
            return self.model.state.value
        if self.held is not None:
            return self.held.state.value
        return "loading" if self.model.desired is Desired.LOADED else "unloaded"


@dataclass(frozen=True)
class AliasVersion:
    """What an alias was from one change to the next; without targets where the change was its deletion."""

    seq: int
    alias: str
    version: int
    targets: tuple[AliasTarget, ...]
    shadow: AliasShadow | None
    guard: AliasGuard | None
    at: float
    who: str | None
    why: str
    rolled_back_to: int | None
    """The version that it repeats, where it is a rollback."""


@dataclass(frozen=True)
class ShadowAnswer:
    """What a shadow target answered to the copy of a request."""

    seq: int
    id: str
    alias: str
    model: str
    answered_by: str
    """The model that answered the request itself."""
    path: str
    at: float
    seconds: float
    status: int
    request: Any
    """The body; a text, its beginning, where it is long."""
    answer: Any
