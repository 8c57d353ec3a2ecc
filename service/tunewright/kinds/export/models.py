"""The models of an export's columns: the checked request, and the report on the product."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tunewright.evaluate.folder import RowsFrom
from tunewright.export.folder import CombineMethod, Format
from tunewright.kinds.data import DataOptions
from tunewright.wire import Wire

CALIBRATION_FILE, VALIDATION_FILE, SOURCE = "calibration_file", "validation_file", "source"
"""Roles of an export's inputs: two files, and the weights of the adapters, in their order, or of the full model."""


class SourceModel(BaseModel):
    """An adapter that goes into the export; its weights are the input at the same position."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str
    weight: float = 1.0


class CombineRequest(BaseModel):
    """How several adapters become one."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    method: CombineMethod = "linear"
    density: float = 0.5
    rank: int | None = None


class ExportRequest(BaseModel):
    """The request, with the defaults that were filled in when the job was created."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str
    """Public name of the exported model, or of the first of several adapters."""
    suffix: str | None = None
    chat_template: str | None = None
    format: Format
    models: list[SourceModel] = []
    """The adapters; empty where a base or a full model is exported."""
    combine: CombineRequest | None = None
    calibration_rows: int | None = None
    group_size: int | None = None
    rows: int
    """Number of rows on which the quality is measured."""
    rows_from: RowsFrom
    calibration_data: DataOptions = DataOptions()
    validation_data: DataOptions = DataOptions()
    """How the files are read: those of a fine-tuning job as it has read them."""
    calibration_shares: dict[str, float] = {}
    validation_shares: dict[str, float] = {}
    """The share of each file in the rows, by its id; files that are not in it have equal shares."""
    max_kl: float | None = None
    force: bool = False
    notes: list[str] = []
    """What the user should know before the export runs."""


class QualityRow(Wire):
    """One model over the held-out rows; null where its numbers overflow."""

    name: str = Field(
        description="base, adapter, adapter in bfloat16, model (a whole one), merged or awq; of several adapters also "
        "their own names."
    )
    loss: float | None = Field(description="Nats for each token.")
    kl: float | None = Field(description="From the source to this model, in nats for each token.")
    top1_agreement: float | None = Field(
        description="Share of tokens where both hold the same for the likeliest."
    )


class Quality(Wire):
    """What the export lost against what it came from."""

    source: str = Field(description="The row that the others are compared with.")
    models: list[QualityRow]
    rows: int
    tokens: int
    rows_from: RowsFrom


class Gate(Wire):
    """Whether the product is published."""

    max_kl: float | None = Field(
        description="Nats for each token; null for a combined adapter, which is a new thing."
    )
    noise: float | None = Field(
        None,
        description="KL divergence of the adapter computed in bfloat16 from the same in float32: what serving it does "
        "to it anyway.",
    )
    kl: float | None
    passed: bool
    forced: bool = Field(description="Published all the same.")


class ExportReport(Wire):
    """What was measured of the product; also of one that the gate holds back."""

    quality: Quality
    gate: Gate
    bytes: int | None = Field(None, description="Of the product on disk.")
    source_bytes: int | None = Field(None, description="Of what it was made of: the base and its adapter.")
    details: dict[str, Any] = Field(
        default_factory=dict, description="Of each phase: seconds, shards, layers, errors, versions."
    )
