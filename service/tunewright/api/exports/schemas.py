"""Exports: requests, their state and their results."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tunewright.api.adapters.schemas import Suffix
from tunewright.api.jobs.schemas import JobError, JobEventBody, Metadata, estimated_finish
from tunewright.export.folder import CombineMethod, Format
from tunewright.kinds.export.kind import request_of
from tunewright.kinds.export.models import CALIBRATION_FILE, VALIDATION_FILE, ExportReport
from tunewright.store.records import Job
from tunewright.store.states import JobState
from tunewright.wire import Body, Wire

MOST_MODELS = 16
Rows = Annotated[int, Field(strict=True, ge=1, le=4096)]


class WeightedModel(Body):
    """An adapter with its weight."""

    model: str = Field(max_length=512)
    weight: float = Field(1.0, strict=True, ge=-10, le=10, description="Factor of its changes.")


class CombineOptions(Body):
    """How several adapters are combined into one."""

    method: CombineMethod = Field(
        "linear",
        description="linear: the weighted sum of their changes; soup: their mean (Wortsman 2022); ties: trimmed, "
        "with one sign elected for each number (Yadav 2023); dare: randomly thinned and rescaled, then summed (Yu "
        "2023).",
    )
    density: float = Field(
        0.5, strict=True, gt=0, le=1, description="For ties and dare: the share of numbers that is kept."
    )
    rank: Annotated[int, Field(strict=True, ge=1, le=512)] | None = Field(
        None,
        description="Rank of the result. Default: the sum of their ranks, or --max-lora-rank if that is less.",
    )


class CreateExport(Body):
    """Give `model`, or several adapters of one base as `models`."""

    model: str | None = Field(
        None, max_length=512, description="An adapter; for awq also a base or a whole model."
    )
    models: list[WeightedModel] | None = Field(None, min_length=2, max_length=MOST_MODELS)
    format: Format = Field(
        description="merged: the base in bfloat16 with the adapter in its weights; awq: 4 bits (of an adapter: merged "
        "first); adapter: a new adapter from several."
    )
    combine: CombineOptions | None = None
    suffix: Suffix | None = None
    seed: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)] = 0
    calibration_file: str | None = Field(
        None,
        max_length=64,
        description="Rows on which the quantizer calibrates. Default: the training file of the model's job.",
    )
    calibration_rows: Rows = 128
    group_size: Literal[128, 64, 32, "largest"] = Field(
        128,
        description="Weights that share a scale. largest: the largest of these that divides all dimensions.",
    )
    validation_file: str | None = Field(
        None,
        max_length=64,
        description="Held-out rows that the quality is measured on. Default: the validation file of the model's job, "
        "else its training file, else a few probes that come with the service.",
    )
    validation_rows: Rows = 64
    max_kl: Annotated[float, Field(strict=True, gt=0, le=100)] | None = Field(
        None,
        description="The gate: largest KL divergence of the product from its source, in nats for each token. Default: "
        "--max-awq-kl; for merged --max-merged-kl, else five times the effect of computing in bfloat16 on the adapter.",
    )
    force: bool = Field(
        False, strict=True, description="Publish it even if it does not pass the gate, and record that."
    )
    metadata: Metadata = Field(None, description="Up to 16 pairs, kept with the export.")

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        if (self.model is None) == (self.models is None):
            raise ValueError("give `model`, or several adapters as `models`: one of the two")
        if self.combine is not None and self.models is None:
            raise ValueError("`combine` says how several adapters become one: give them as `models`")
        if self.format == "adapter" and self.models is None:
            raise ValueError("format adapter makes one of several adapters: give them as `models`")
        if self.format == "adapter" and self.max_kl is not None:
            raise ValueError("`max_kl` is for merged and awq: a combined adapter is a new thing")
        names = [source.model for source in self.models or ()]
        if len(set(names)) < len(names):
            raise ValueError("a model is there twice in `models`: give it once, with one weight")
        is_soup = self.combine is not None and self.combine.method == "soup"
        if is_soup and any(source.weight != 1 for source in self.models or ()):
            raise ValueError("a soup is the mean: leave the weights out, or combine with method linear")
        return self


class ExportProgress(Wire):
    """The newest step."""

    step: int
    total_steps: int
    phase: str = Field(description="combine, merge, quantize or measure.")
    eta_seconds: float | None = Field(None, description="Seconds left of this phase.")


class ExportObject(Wire):
    """A job that makes a new model from existing ones, without training."""

    id: str
    object: Literal["export"] = "export"
    created_at: int
    started_at: int | None
    finished_at: int | None
    status: JobState
    model: str = Field(description="The exported model; the first of several.")
    models: list[WeightedModel] = Field(description="The adapters that go into it.")
    base: str
    format: Format
    combine: CombineOptions | None
    exported_model: str | None = Field(description="The product, once it is listed.")
    progress: ExportProgress | None
    estimated_finish: int | None
    error: JobError | None
    report: ExportReport | None
    notes: list[str] = Field(description="Remarks made when it was created.")
    calibration_file: str | None
    calibration_rows: int | None
    group_size: int | None
    validation_file: str | None
    validation_rows: int
    max_kl: float | None
    force: bool
    seed: int
    suffix: str | None
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, job: Job) -> ExportObject:
        request, progress = request_of(job), job.progress
        return cls(
            id=job.id,
            created_at=int(job.created_at),
            started_at=int(job.started_at) if job.started_at else None,
            finished_at=int(job.finished_at) if job.finished_at else None,
            status=job.state,
            model=request.model,
            models=[WeightedModel(model=source.model, weight=source.weight) for source in request.models],
            base=job.base,
            format=request.format,
            combine=CombineOptions(**request.combine.model_dump()) if request.combine else None,
            exported_model=job.model,
            progress=ExportProgress(**progress.model_dump(include=set(ExportProgress.model_fields)))
            if progress
            else None,
            estimated_finish=estimated_finish(job),
            error=JobError.of(job.error),
            report=job.report if isinstance(job.report, ExportReport) else None,
            notes=request.notes,
            calibration_file=job.file(CALIBRATION_FILE),
            calibration_rows=request.calibration_rows,
            group_size=request.group_size,
            validation_file=job.file(VALIDATION_FILE),
            validation_rows=request.rows,
            max_kl=request.max_kl,
            force=request.force,
            seed=job.seed,
            suffix=request.suffix,
            metadata=job.metadata,
        )


class ExportEventObject(JobEventBody):
    """An export's event. Metric events have their numbers in `data`."""

    object: Literal["export.event"] = "export.event"
    data: dict[str, Any] | None = Field(
        description="step, total_steps, phase, eta_seconds (of the phase), memory_bytes."
    )
