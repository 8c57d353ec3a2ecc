"""What an export's process is told, and what it tells. The folder is a job's: `jobs.folder`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tunewright.evaluate.folder import RowsFrom

Format = Literal["merged", "awq", "adapter"]
CombineMethod = Literal["linear", "ties", "dare", "soup"]


class SourceAdapter(BaseModel):
    """An adapter that goes into the export, by its public name and its PEFT folder."""

    model: str
    sha256: str
    path: str
    weight: float = 1.0
    lineage: dict[str, Any] = {}
    """Where it came from, for the model card."""


class Combine(BaseModel):
    """How several adapters become one (`export.combine`)."""

    method: CombineMethod = "linear"
    density: float = 0.5
    rank: int | None = None
    max_rank: int


class Rows(BaseModel):
    """Rows that the quality is measured on."""

    file: str | None
    """Chat or text rows; None: the probes that come with the service."""
    rows_from: RowsFrom
    count: int
    """How many of them count, from the first on."""


class Calibration(BaseModel):
    """Text that the quantizer looks at."""

    file: str
    rows: int
    group_size: int


class ExportSpec(BaseModel):
    """`spec.json`: all that the process is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    model: str
    """The product's public name."""
    format: Format
    source: str
    """The public name of what is exported, or of the first of several."""
    base_name: str
    base_hub_id: str | None = None
    base_path: str
    """The model that the adapters are on; without adapters, the model that is quantized."""
    trust_remote_code: bool = False
    adapters: list[SourceAdapter]
    combine: Combine | None = None
    """Where there are several adapters."""
    chat_template: str | None = None
    """The adapter's own."""
    seed: int
    device: str
    """`cpu` or `cuda`; which GPU is the environment's business."""
    calibration: Calibration | None = None
    rows: Rows
    max_merged_kl: float | None = None
    """The most that the merged model may diverge (KL) from the adapter, in nats for each token; None: a multiple of the
    noise."""
    max_awq_kl: float | None = None
    """The same, of the quantized model from what the export began with."""
    force: bool = False
    """Publish it also past the bounds, with the fact on record."""
    facts: dict[str, Any] = {}
    """Lineage for the model card."""
