"""Exports and what was measured of them, as the server sends them. Times are Unix seconds, sizes bytes."""

from typing import Any, Literal

from pydantic import Field

from .base import Wire
from .jobs import WorkRecord

ExportFormat = Literal["merged", "awq", "adapter"]


class WeightedModel(Wire):
    """An adapter, and how much of it: its weight times what it changes."""

    model: str
    weight: float = 1.0


class CombineOptions(Wire):
    """How several adapters become one.

    `method` is linear, soup, ties or dare; `density`, of ties and dare, the share of numbers that is kept;
    `rank` that of the result.
    """

    method: str | None = None
    density: float | None = None
    rank: int | None = None


class ExportQualityRow(Wire):
    """One model over the held-out rows. `loss` and `kl`, from the source to this model, are in nats for each
    token; None where a number overflowed."""

    name: str
    loss: float | None = None
    kl: float | None = None
    top1_agreement: float | None = None


class ExportQuality(Wire):
    """What the export lost against what it came from: the row named by `source`.

    `rows_from` is validation_file, training_file or probes.
    """

    source: str
    models: list[ExportQualityRow]
    rows: int
    tokens: int
    rows_from: str | None = None


class ExportGate(Wire):
    """Whether the product may be published: its `kl` against `max_kl` (None: no bound). `forced`: it was
    published all the same."""

    max_kl: float | None = None
    kl: float | None = None
    passed: bool
    forced: bool = False


class ExportReport(Wire):
    """What was measured of the product, also of one that the gate holds back. `source_bytes` is the size of
    what it was made of, the base and its adapters; `details` has what each phase took."""

    quality: ExportQuality | None = None
    gate: ExportGate | None = None
    bytes: int | None = None
    source_bytes: int | None = None
    details: dict[str, Any] = Field(default_factory=dict)

    @property
    def size_ratio(self) -> float | None:
        """The product's size by that of what it was made of."""
        return self.bytes / self.source_bytes if self.bytes is not None and self.source_bytes else None


class ExportRecord(WorkRecord):
    """A job that makes a model of models, as it was when it was read. The clients return it as `Export` or
    `AsyncExport`."""

    object: str = "export"
    started_at: int | None = None
    models: list[WeightedModel] = Field(default_factory=list)
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
