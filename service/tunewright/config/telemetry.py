"""The options of what is told about the service and its jobs: logs, traces, reports of training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from tunewright.config.group import Group, split_commas


class TelemetryOptions(Group):
    """The logs of the service, and traces."""

    log_format: Literal["text", "json"] = Field(
        "text", description="Whether the service logs lines of text, or an object of JSON on each line."
    )
    log_file: Path | None = Field(
        None,
        description="A file for what the service logs, which is rotated: four parts of 16 MiB. Default: stderr, which"
        " whoever runs the service has to rotate.",
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^/\s@]+",
        description="Address of a receiver of OpenTelemetry traces over OTLP/HTTP, such as http://127.0.0.1:4318, to"
        " which requests, jobs and vLLM are traced. Default: nothing is traced.",
    )


class ReportOptions(Group):
    """Where training is reported, beside Weights & Biases."""

    report_to: Annotated[list[Literal["tensorboard", "mlflow"]], NoDecode] = Field(
        default_factory=list,
        description="tensorboard or mlflow, to which all fine-tuning jobs are reported; repeat for both"
        " (comma-separated in the variable). Default: only jobs that ask for it.",
    )
    mlflow_tracking_uri: str | None = Field(
        None,
        description="Address of the MLflow server to which jobs are reported, or a file: or sqlite: URI. Default:"
        " none.",
    )

    _split_reports = field_validator("report_to", mode="before")(split_commas)

    @model_validator(mode="after")
    def _check_address(self) -> Self:
        if "mlflow" in self.report_to and self.mlflow_tracking_uri is None:
            raise ValueError("report_to names mlflow: set --mlflow-tracking-uri too")
        if "@" in (self.mlflow_tracking_uri or ""):
            raise ValueError(
                "it may have no credentials: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                "MLFLOW_TRACKING_TOKEN"
            )
        return self
