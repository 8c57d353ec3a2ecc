"""Files, models, adapters and the state of the service. Times are Unix seconds."""

from typing import Any

from pydantic import Field

from .base import Wire


class FileFault(Wire):
    """A fault of a file, in a line (from 1) or, in a JSON array or Parquet, a row."""

    line: int | None = None
    row: int | None = None
    message: str = ""

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line is not None else f"row {self.row}: "
        return (place if self.line is not None or self.row is not None else "") + self.message


class FileReport(Wire):
    """What the service has found in the rows of a file.

    - container: jsonl, json, csv or parquet, with .gz behind it where it is compressed
    - format: the format of its rows, such as openai_chat, alpaca or sharegpt; kind: what they are for
    - faults: up to ten; has_more_faults: whether there may be more
    - ignored_fields: fields that have no meaning in the format
    """

    container: str | None = None
    format: str | None = None
    kind: str | None = None
    rows: int = 0
    faults: list[FileFault] = Field(default_factory=list)
    has_more_faults: bool = False
    ignored_fields: list[str] = Field(default_factory=list)


class FileLineage(Wire):
    """What a cleaning, or a synthesis, has made a file of: the file by its id, name and hash; of a cleaning the steps
    with their options; of a synthesis the task, and the teacher by its name and the hash of its weights.

    The job, the teacher and the file that it was made of may be gone by now.
    """

    cleaning: str | None = None
    synthesis: str | None = None
    file: str
    filename: str = ""
    sha256: str = ""
    steps: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])
    task: dict[str, Any] | None = None
    teacher: str | None = None
    teacher_content: str | None = None
    prompts_version: int | None = None
    seed: int | None = None
    rows_before: int = 0
    rows_after: int = 0


class File(Wire):
    """An uploaded or generated file.

    - bytes: its size; expires_at: None where it does not expire
    - status: uploaded while its rows are being checked, then processed or error; status_details: what is wrong
    - report: what was found; None before, for results, and from older servers
    - lineage: what it was made of, where a cleaning or a synthesis has made it
    """

    id: str
    object: str = "file"
    bytes: int = 0
    created_at: int = 0
    filename: str = ""
    purpose: str = ""
    status: str | None = None
    status_details: str | None = None
    report: FileReport | None = None
    expires_at: int | None = None
    lineage: FileLineage | None = None


class Deleted(Wire):
    """The answer to a deletion."""

    id: str
    object: str = ""
    deleted: bool = True


class Model(Wire):
    """A model that generations can use: a base, a fine-tuned model or an alias."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = ""


class Lineage(Wire):
    """The origin of an adapter. Fields that do not apply or are unknown are None.

    - origin, revision: where an adapter that was not trained by the service comes from
    - metrics: the last losses of its training
    - mix: where there were several training files, the file, sha256 and weight of each
    - models: for an adapter that an export made, the model, sha256 and weight of each of its sources
    """

    base_fingerprint: str | None = None
    parent_sha256: str | None = None
    training_file: str | None = None
    training_sha256: str | None = None
    validation_file: str | None = None
    validation_sha256: str | None = None
    mix: list[dict[str, Any]] | None = None
    seed: int | None = None
    metrics: dict[str, float] | None = None
    origin: str | None = None
    revision: str | None = None
    created_by: str | None = None
    models: list[dict[str, Any]] | None = None


class Parity(Wire):
    """Whether an adapter has the same effect in the engine as in peft.

    - verdict: pass, fail, no_measurable_effect or not_checked; `reason` explains it
    - slope, correlation: of the changes in the engine over those in peft
    - effect, noise, residual and the differences: in nats
    - four_bit: for QLoRA its loss on the 4-bit base (loss) and on the one that it is served on (served_loss), and the
      difference
    - measured_as: the model of equal weights that was measured, if it was another
    - forced: who has the adapter served although it was quarantined
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
    four_bit: dict[str, float] | None = None
    measured_as: str | None = None
    forced: dict[str, Any] | None = None


class Adapter(Wire):
    """A LoRA adapter and its state.

    - desired: the requested state: loaded or unloaded
    - state: the present state: loaded, loading, draining, unloaded, failed, checking, unchecked, quarantined or
      merge_only
    - error: why it failed
    - bytes, sha256: the size and the hash of its content
    - source: where it comes from: job, upload, folder, hub or export
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
    """One part of the service. `reason` says why it is not ready. The service is ready without parts that are not
    `required`, such as deployments."""

    ready: bool
    required: bool = True
    state: str | None = None
    reason: str | None = None


class Ready(Wire):
    """Whether the service and each of its parts are ready."""

    ready: bool
    components: dict[str, Component] = Field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.ready

    @property
    def waiting_for(self) -> str:
        """The required parts that are not ready, with their reasons, in one line; empty when all are ready."""
        parts = [
            f"{name}: {component.reason or component.state or 'not ready'}"
            for name, component in self.components.items()
            if component.required and not component.ready
        ]
        return "; ".join(parts)
