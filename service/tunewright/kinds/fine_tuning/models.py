"""What a row of a fine-tuning job holds."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from tunewright.jobs.kinds import JobResult
from tunewright.plan.options import HyperparameterOptions, TuningOptions

TRAINING_FILE, VALIDATION_FILE, PARENT = "training_file", "validation_file", "parent"
"""Roles of a job's inputs: two files, and the weights of the model that its training goes on from."""


class FineTuningRequest(BaseModel):
    """What was asked for."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str
    """A base, or the model to go on from, by the name in the request."""
    suffix: str | None = None
    chat_template: str | None = None
    method: Literal["supervised"] = "supervised"
    """OpenAI's method."""
    hyperparameters: HyperparameterOptions = HyperparameterOptions()
    tuning: TuningOptions = TuningOptions()


class FineTuningResult(JobResult):
    trained_tokens: int | None = None
