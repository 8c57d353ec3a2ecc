"""The job kinds as the store needs them: their names, and the pydantic models of the columns of a row.

The package `kinds` implements the kinds and registers each of them here. The store parses rows with these models, so it
cannot read a job of a kind that is not registered.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

NO_BASE = ""
"""The base of the jobs of kinds that need none."""


class JobResult(BaseModel):
    """The result of a job. Kinds add fields."""

    model_config = ConfigDict(frozen=True)

    model: str | None = None
    """Public name of the product; None until it is listed."""

    @property
    def end(self) -> str:
        """How the job has ended, in the words of its kind."""
        return "succeeded"


class JobError(BaseModel):
    """Why a job failed."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    param: str | None = None


class JobProgress(BaseModel):
    """The newest step in the events of a job's process. Steps count from 1."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: int
    total_steps: int = 0
    eta_seconds: float | None = None
    """Seconds left in training, or in the phase of an export."""
    train_loss: float | None = None
    """Nats per trained token."""
    phase: str | None = None
    """The part of an export that the step belongs to."""
    failed: int | None = None
    """Requests of a batch that have no answer and will have none."""


class JobKind:
    """A kind of job. Subclasses set every attribute; `kinds.kind.Kind` adds the behaviour."""

    name: str
    """Stored in each row, so it must not change."""
    id_prefix: str
    event_prefix: str
    """Prefixes of the identifiers of its jobs and of their events."""
    noun: str
    """What messages call a job of this kind: lower case, without an article."""
    product: str = "model"
    """What messages call its product."""
    request: type[BaseModel]
    """The parameters of the request, `auto` included."""
    resolved: type[BaseModel] | None = None
    """The values that were chosen for every `auto` when the job was validated."""
    result: type[JobResult] = JobResult
    report: type[BaseModel] | None = None
    """What was measured of the product."""
    needs_base: bool = True
    """False: its jobs have the base `NO_BASE`, wait for no engine, and run on the CPU, beside those that hold GPUs."""

    own_places: int | None = None
    """How many jobs of the kind run at once, beside all others, since they wait for models most of the time; they need
    no base. None: they take turns with all others for the devices."""

    @property
    def places(self) -> list[str]:
        """What its jobs hold in the place of devices, where it has places of its own."""
        return [f"{self.name}:{number}" for number in range(self.own_places or 0)]

    def devices_of(self, resolved: BaseModel | None) -> int:
        """How many GPUs a job of these resolved values needs, all at once."""
        return 1

    def is_evaluated(self, request: BaseModel) -> bool:
        """Whether a job with this request has its product evaluated before it ends."""
        return False

    def name_of_input(self, request: BaseModel, role: str, position: int) -> str:
        """Public name of the model whose weights are the input at this position of a role. For messages."""
        return str(getattr(request, "model", role))


_registered: dict[str, JobKind] = {}


def register(kind: JobKind) -> None:
    """Make a kind known. Raises ValueError where its name or its prefix is taken by another kind."""
    for other in _registered.values():
        if other is not kind and (other.name == kind.name or other.id_prefix == kind.id_prefix):
            raise ValueError(f"the job kind {kind.name} ({kind.id_prefix}-...) is registered already")
    _registered[kind.name] = kind


def unregister(kind: JobKind) -> None:
    """Remove a kind that a test has registered."""
    _registered.pop(kind.name, None)


def kind_named(name: str) -> JobKind:
    """The kind of this name. Raises LookupError where no such kind is registered."""
    try:
        return _registered[name]
    except KeyError:
        known = ", ".join(_registered) or "none; import tunewright.kinds"
        raise LookupError(f"there is no job kind {name!r} (registered: {known})") from None


def registered_kinds() -> Sequence[JobKind]:
    return list(_registered.values())
