"""Frozen records of the rows of each table, for the rest of the service. Times are Unix seconds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tunewright.jobs.kinds import JobError, JobProgress, JobResult
from tunewright.metrics.verdicts import Gate
from tunewright.registry.aliases import AliasGuard, AliasRequirement, AliasShadow, AliasTarget
from tunewright.store.file_lineages import FileLineage, SynthesisLineage
from tunewright.store.states import (
    UNCHECKED,
    DeploymentState,
    Desired,
    EngineState,
    FileStatus,
    JobPhase,
    JobState,
    ModelKind,
    ModelMethod,
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
    expires_at: float | None
    """When the retention removes it, unless an unfinished job needs it; None: never for its age."""
    status: FileStatus = FileStatus.PROCESSED
    report: dict[str, Any] | None = None
    """What the check of its rows has found (`rows.formats.FileReport.as_json`); None before, and for results."""
    lineage: FileLineage | SynthesisLineage | None = None
    """None for uploads and results."""
    project: str = "default"

    def __post_init__(self) -> None:
        object.__setattr__(self, "status", FileStatus(self.status))
        if isinstance(self.lineage, dict):
            lineage = SynthesisLineage if "synthesis" in self.lineage else FileLineage
            object.__setattr__(self, "lineage", lineage(**self.lineage))


@dataclass(frozen=True)
class JobInput:
    """An input of a job: an uploaded file, or the weights of a model."""

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
    pipeline: str | None
    """The id of the first job, where several follow each other."""
    after: str | None
    """The id of the job that this one follows."""
    api_key_id: str | None
    """Of the key that has created it, or has created the job that it belongs to."""
    project: str
    inputs: tuple[JobInput, ...]
    devices: tuple[str, ...]

    def file(self, role: str) -> str | None:
        """Id of the input file with this role; None where there is none."""
        return next((one.file_id for one in self.inputs if one.role == role and one.file_id), None)

    def files(self, role: str) -> list[str]:
        """Ids of the input files with this role, in order of position."""
        return [one.file_id for one in self.inputs if one.role == role and one.file_id]

    def weights(self, role: str) -> list[str]:
        """Hashes of the input weights with this role, in order of position."""
        return [one.sha256 for one in self.inputs if one.role == role and one.sha256]

    @property
    def device(self) -> str | None:
        """The first device that the job holds."""
        return self.devices[0] if self.devices else None

    @property
    def model(self) -> str | None:
        """Public name of the job's product."""
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
    api_key_id: str | None = None
    then: tuple[NewJob, ...] = ()
    """Jobs that follow it, one after another, each from the product of the one before."""
    first: tuple[NewJob, ...] = ()
    """Evaluations that are inserted before it, unless there are like ones already (`job_rows.ensure`). Behind the job's
    id, their keys are unique; their request has the id as its `job`."""

    def by_key(self, id: str | None) -> NewJob:
        """The same, and all that is created with it, as created by a key."""
        then, first = (tuple(one.by_key(id) for one in jobs) for jobs in (self.then, self.first))
        return replace(self, api_key_id=id, then=then, first=first)

    def position_of(self, one: JobInput) -> int:
        """The position of an input among those with its role, from 0."""
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
    """The origin of a model; fields are None where they do not apply or are not known."""

    parent_sha256: str | None = None
    """Hash of the weights from which training continued."""
    training_file: str | None = None
    training_sha256: str | None = None
    validation_file: str | None = None
    validation_sha256: str | None = None
    mix: list[dict[str, Any]] | None = None
    """Where there were several training files: file, sha256, weight, and examples of an epoch of each."""
    seed: int | None = None
    metrics: dict[str, float] | None = None
    """The last losses and accuracies of its training."""
    origin: str | None = None
    """For a registered adapter: the file's name, the folder, or the hub's id."""
    revision: str | None = None
    """The hub's commit."""
    created_by: str | None = None
    models: list[dict[str, Any]] | None = None
    """The adapters from which an export was made: model, sha256 and weight of each."""


@dataclass(frozen=True)
class TunedModel:
    """An adapter or a full model, made by a job or registered; its weights are the artifact `sha256`."""

    seq: int
    id: str
    name: str
    kind: ModelKind
    sha256: str
    base: str
    base_fingerprint: str
    job_id: str | None
    checkpoint_step: int | None
    method: ModelMethod
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
    project: str = "default"

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", ModelKind(self.kind))
        object.__setattr__(self, "method", ModelMethod(self.method))
        object.__setattr__(self, "desired", Desired(self.desired))
        object.__setattr__(self, "source", Source(self.source))
        object.__setattr__(self, "state", ModelState(self.state))
        if isinstance(self.lineage, dict):
            object.__setattr__(self, "lineage", Lineage(**self.lineage))

    @property
    def shown_state(self) -> str:
        """`state`, or that it waits for a check that does not come before somebody loads it."""
        is_awaited = self.desired is Desired.LOADED or "asked_at" in (self.parity or {})
        return UNCHECKED if self.state is ModelState.CHECKING and not is_awaited else self.state.value


class EngineInfo(BaseModel):
    """How a run of an engine was started. Fields without a default were written by every version of the service."""

    model_config = ConfigDict(frozen=True)

    device: str
    """cpu, or cuda:N."""
    internal_name: str
    """The name of the base in the engine."""
    fingerprint: str
    """The base's fingerprint (`registry.bases.BaseInfo`)."""
    path: Path | None = None
    """The base's folder; None in the row of an earlier version, until the engine starts again."""
    has_chat_template: bool = True
    max_model_len: int | None = None
    """Tokens."""
    vocab_size: int | None = None
    """Number of tokens, if the base's config has it."""
    quantization: str | None = None
    """Quantization method of the base's weights: awq, gptq, ..."""
    enable_lora: bool = True
    max_lora_rank: int | None = None
    max_loras: int | None = None
    """Adapters in one batch; None in the row of an earlier version."""
    specialize_active_lora: bool = False
    max_adapters: int = 0
    """Number of adapters that it can hold."""
    trust_remote_code: bool = False
    deployment: str | None = None
    """The deployment's id; None for a base."""
    max_num_seqs: int | None = None
    """Sequences that it runs at once; None in the row of an earlier version."""
    control_tokens: tuple[str, ...] = ()
    """Control tokens of the base's tokenizer (`rows.control_tokens`), and with those of its chat template."""
    all_control_tokens: tuple[str, ...] = ()


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
    """None before its first start."""
    project: str | None = None
    """That of its deployment; None for a base."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", EngineState(self.state))
        if isinstance(self.info, dict):
            object.__setattr__(self, "info", EngineInfo.model_validate(self.info))

    @property
    def is_deployed(self) -> bool:
        """Whether it is a deployment's engine, which may be drained; a base's runs as long as the service."""
        return self.info is not None and self.info.deployment is not None


@dataclass(frozen=True)
class Deployment:
    """A model that is served beside the bases. Its engine, which has the model's name, has the actual state."""

    seq: int
    id: str
    model: str
    asked: dict[str, Any]
    """Options of its engine as requested."""
    options: dict[str, Any]
    """The resulting options: fields of `engine.command.EngineOptions`."""
    created_at: float
    state: DeploymentState
    drain_until: float | None
    failures: int
    """Starts in a row after which its engine was not ready."""
    was_ready: bool
    project: str = "default"

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
    """The number of a loaded adapter in the memory of vLLM's workers."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", Residency(self.state))


@dataclass(frozen=True)
class ModelWithEngine:
    """A model, its engine (None where it is not served), and its residency in that engine."""

    model: TunedModel
    engine: Engine | None
    held: ResidencyRow | None

    @property
    def state(self) -> str:
        """The state of an adapter: its residency in the engine, or why the engine may not load it."""
        if self.model.state is not ModelState.READY:
            return self.model.shown_state
        if self.held is not None:
            return self.held.state.value
        return "loading" if self.model.desired is Desired.LOADED else "unloaded"


@dataclass(frozen=True)
class AliasVersion:
    """One version of an alias; without targets where it is the alias's deletion."""

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
    """The version that it restored, where it is a rollback."""
    require: AliasRequirement | None = None
    gate: Gate | None = None
    """What was found of its new targets, where they were judged."""
    project: str = "default"
