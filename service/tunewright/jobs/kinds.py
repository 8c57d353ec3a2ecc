"""The kinds of jobs there are, as far as the store has to know them: names, and the models of what a row holds.

`kinds/` has what a kind does, and registers each of them here. The store parses rows with these models, so it can read
no job of a kind that is not registered.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict


class JobResult(BaseModel):
    """What a job has made. Kinds add fields."""

    model_config = ConfigDict(frozen=True)

    model: str | None = None
    """Public name of the product, once it is listed."""


class JobError(BaseModel):
    """Why a job failed."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    param: str | None = None


class JobProgress(BaseModel):
    """The newest step that a job's process reported. Steps count from 1."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: int
    total_steps: int = 0
    eta_seconds: float | None = None
    """Seconds left, of training or of a phase."""
    train_loss: float | None = None
    """Nats per trained token."""
    phase: str | None = None
    """The part of an export that the step belongs to."""


class JobKind:
    """A kind of job. Subclasses set every attribute; `kinds.kind.Kind` adds what a kind does."""

    name: str
    """Stored in each row: it must not change."""
    id_prefix: str
    event_prefix: str
    """Prefixes of the identifiers of its jobs and of their events."""
    noun: str
    """The job in messages, lower case, without an article."""
    product: str = "model"
    """Its product in messages."""
    request: type[BaseModel]
    """What was asked for, `auto` included."""
    resolved: type[BaseModel] | None = None
    """What every `auto` became when the job was validated."""
    result: type[JobResult] = JobResult
    report: type[BaseModel] | None = None
    """What was measured of the product."""

    def name_of_input(self, request: BaseModel, role: str, position: int) -> str:
        """Public name of the model whose weights are the input at this position of a role, for messages."""
        return str(getattr(request, "model", role))


_registered: dict[str, JobKind] = {}


def register(kind: JobKind) -> None:
    """Make a kind known. Raises ValueError where its name or its prefix is taken by another kind."""
    for other in _registered.values():
        if other is not kind and (other.name == kind.name or other.id_prefix == kind.id_prefix):
            raise ValueError(f"the job kind {kind.name} ({kind.id_prefix}-...) is registered already")
    _registered[kind.name] = kind


def unregister(kind: JobKind) -> None:
    """Forget a kind, which a test has defined."""
    _registered.pop(kind.name, None)


def kind_named(name: str) -> JobKind:
    """Raises LookupError where no such kind is registered."""
    try:
        return _registered[name]
    except KeyError:
        known = ", ".join(_registered) or "none; import tunewright.kinds"
        raise LookupError(f"there is no job kind {name!r} (registered: {known})") from None


def registered_kinds() -> Sequence[JobKind]:
    return list(_registered.values())
