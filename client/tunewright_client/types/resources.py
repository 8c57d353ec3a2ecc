"""Files, models, adapters and the service's own state, as the server sends them. Times are Unix seconds."""

from typing import Any

from pydantic import Field

from .base import Wire


class File(Wire):
    """An uploaded file. `bytes` is its size."""

    id: str
    object: str = "file"
    bytes: int = 0
    created_at: int = 0
    filename: str = ""
    purpose: str = ""
    status: str | None = None
    expires_at: int | None = None


class Deleted(Wire):
    """The answer to a deletion."""

    id: str
    object: str = ""
    deleted: bool = True


class Model(Wire):
    """A name that generations can ask for: a base, a fine-tuned model or an alias."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = ""


class Lineage(Wire):
    """What an adapter was made from; None where it does not apply or is not known.

    `origin` and `revision` say where one that was not trained by the service came from; `metrics` are the
    last losses of its training. `models` are those that went into one that an export made: model, sha256
    and weight of each.
    """

    base_fingerprint: str | None = None
    parent_sha256: str | None = None
    training_file: str | None = None
    training_sha256: str | None = None
    validation_file: str | None = None
    validation_sha256: str | None = None
    seed: int | None = None
    metrics: dict[str, float] | None = None
    origin: str | None = None
    revision: str | None = None
    created_by: str | None = None
    models: list[dict[str, Any]] | None = None


class Parity(Wire):
    """Whether an adapter does in the engine what it does in peft.

    `verdict` is pass, fail, no_measurable_effect or not_checked, `reason` says it in words. `slope` and
    `correlation` are of the engine's changes on peft's; `effect`, `noise` and the differences are in nats.
    `forced` says who has it served although it was quarantined.
    """

    verdict: str | None = None
    reason: str | None = None
    checked_at: float | None = None
    check_pending: bool = False
    rows_from: str | None = None
    rows: int | None = None
    tokens: int | None = None
    slope: float | None = None
    correlation: float | None = None
    effect: float | None = None
    noise: float | None = None
    residual: float | None = None
    mean_difference: float | None = None
    max_difference: float | None = None
    top1_agreement: float | None = None
    worst_rows: list[dict[str, Any]] | None = None
    forced: dict[str, Any] | None = None


class Adapter(Wire):
    """A LoRA adapter and where it stands.

    `desired` is what was asked for (loaded, unloaded), `state` what is so (loaded, loading, unloaded,
    failed, checking, quarantined, merge_only); `error` says why it failed. `bytes` is its size and `sha256`
    the hash of its content. `source` is where it came from: job, upload, folder, hub or export.
    """

    id: str
    object: str = "adapter"
    created_at: int = 0
    model: str = ""
    base: str | None = None
    job_id: str | None = None
    method: str | None = None
    rank: int | None = None
    alpha: float | None = None
    target_modules: list[str] | str | None = None
    bytes: int | None = None
    sha256: str | None = None
    source: str | None = None
    lineage: Lineage | None = None
    desired: str | None = None
    pinned: bool = False
    state: str | None = None
    error: str | dict[str, Any] | None = None
    parity: Parity | None = None


class Component(Wire):
    """One part of the service; `reason` says why it is not ready. Without what is not `required`, which
    deployments are not, the service is ready all the same."""

    ready: bool
    required: bool = True
    state: str | None = None
    reason: str | None = None


class Ready(Wire):
    """Whether the service can do its work, part by part."""

    ready: bool
    components: dict[str, Component] = Field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.ready

    @property
    def waiting_for(self) -> str:
        """The parts that are not ready, with their reasons, in one line; empty when all are."""
        parts = [
            f"{name}: {component.reason or component.state or 'not ready'}"
            for name, component in self.components.items()
            if component.required and not component.ready
        ]
        return "; ".join(parts)
