"""The input of an export's process, `spec.json`. The rest of its folder is as in every job: `jobs.folder`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tunewright.evaluate.folder import RowsFrom
from tunewright.rows.sources import Source

Format = Literal["merged", "awq", "adapter"]
CombineMethod = Literal["linear", "ties", "dare", "soup"]


class SourceAdapter(BaseModel):
    """An adapter to export, with its public name and its PEFT folder."""

    model: str
    sha256: str
    path: str
    weight: float = 1.0
    lineage: dict[str, Any] = {}
    """Its origin, for the model card."""


class Combine(BaseModel):
    """How several adapters are combined into one (`export.combine`)."""

    method: CombineMethod = "linear"
    density: float = 0.5
    rank: int | None = None
    max_rank: int


class Rows(BaseModel):
    """The rows on which the quality is measured."""

    files: tuple[Source, ...] = ()
    """Data files; none: the built-in probes."""
    rows_from: RowsFrom
    count: int
    """How many rows are used, from the first of each file on, in the files' shares."""


class Calibration(BaseModel):
    """The calibration text of the quantizer."""

    files: tuple[Source, ...]
    rows: int
    group_size: int


class ExportSpec(BaseModel):
    """`spec.json`: the input of the process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    model: str
    """The public name of the product."""
    format: Format
    source: str
    """The public name of the model to export, or of the first of several adapters."""
    base_name: str
    base_hub_id: str | None = None
    base_path: str
    """The base of the adapters; without adapters, the model to quantize."""
    trust_remote_code: bool = False
    adapters: list[SourceAdapter]
    combine: Combine | None = None
    """Set where there are several adapters."""
    chat_template: str | None = None
    """That of the adapter, where it has one."""
    seed: int
    device: str
    """`cpu` or `cuda`; the environment selects the GPU."""
    calibration: Calibration | None = None
    rows: Rows
    max_merged_kl: float | None = None
    """The largest KL divergence of the merged model from the adapter, in nats per token.

    None: a multiple of the noise.
    """
    max_awq_kl: float | None = None
    """The largest KL divergence of the quantized model from the source of the export, in nats per token."""
    force: bool = False
    """Publish the product also where it exceeds the bounds; the report says so."""
    facts: dict[str, Any] = {}
    """Lineage for the model card."""
