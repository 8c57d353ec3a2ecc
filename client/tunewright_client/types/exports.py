"""Exports and their measurements. Times are Unix seconds, sizes are bytes."""

from typing import Any, Literal

from pydantic import Field

from .base import Wire
from .jobs import WorkRecord

ExportFormat = Literal["merged", "awq", "adapter"]


class WeightedModel(Wire):
    """An adapter with the factor by which its changes of the weights are multiplied."""

    model: str
    weight: float = 1.0


class CombineOptions(Wire):
    """How several adapters are combined into one.

    - method: linear, soup, ties or dare
    - density: for ties and dare, the share of numbers that is kept
    - rank: the rank of the result
    """

    method: str | None = None
    density: float | None = None
    rank: int | None = None


class ExportQualityRow(Wire):
    """One model, measured on the held-out rows. `loss` and `kl` (the divergence from the source to this model) are in
    nats for each token; None where a number overflowed."""

    name: str
    loss: float | None = None
    kl: float | None = None
    top1_agreement: float | None = None


class ExportQuality(Wire):
    """The quality of the product compared with its source, which is the row named by `source`.

    `rows_from` says where the rows come from: validation_file, training_file or probes.
    """

    source: str
    models: list[ExportQualityRow]
    rows: int
    tokens: int
    rows_from: str | None = None


class ExportGate(Wire):
    """Whether the product may be published: its `kl` compared with `max_kl` (None: no bound). With `forced` it was
    published although it did not pass."""

    max_kl: float | None = None
    kl: float | None = None
    passed: bool
    forced: bool = False


class ExportReport(Wire):
    """The measurements of a product, also of one that did not pass the gate.

    - source_bytes: the size of the base and the adapters that it was made of
    - details: time and memory of each phase
    """

    quality: ExportQuality | None = None
    gate: ExportGate | None = None
    bytes: int | None = None
    source_bytes: int | None = None
    details: dict[str, Any] = Field(default_factory=dict)

    @property
    def size_ratio(self) -> float | None:
        """`bytes` divided by `source_bytes`; None where one of them is unknown."""
        return self.bytes / self.source_bytes if self.bytes is not None and self.source_bytes else None


class ExportRecord(WorkRecord):
    """A job that makes a model of other models. The clients return it as `Export` or `AsyncExport`."""

    object: str = "export"
    started_at: int | None = None
    models: list[WeightedModel] = Field(default_factory=list[WeightedModel])
    base: str = ""
    format: str = ""
    combine: CombineOptions | None = None
    exported_model: str | None = None
    report: ExportReport | None = None
    notes: list[str] = Field(default_factory=list)
    calibration_file: str | None = None
    calibration_rows: int | None = None
    group_size: int | None = None
    validation_file: str | None = None
    validation_rows: int | None = None
    max_kl: float | None = None
    force: bool = False

    @property
    def product(self) -> str | None:
        """`exported_model`."""
        return self.exported_model
