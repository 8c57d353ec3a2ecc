"""What a trainer's process reads and writes in its job folder, beside what every job has (`jobs.folder`)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tunewright.jobs.folder import Outcome
from tunewright.plan.defaults import Resolved


class TrainingSpec(BaseModel):
    """`spec.json`: all that the trainer needs to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    base_name: str
    base_hub_id: str | None = None
    base_path: str
    trust_remote_code: bool = False
    parent_adapter: str | None = None
    """A PEFT folder to go on from."""
    training_file: str
    validation_file: str | None = None
    chat_template: str | None = None
    """Takes the place of the model's own."""
    seed: int
    device: str
    """`cpu` or `cuda`; which GPU is the environment's business."""
    method: Literal["supervised"] = "supervised"
    """OpenAI's method: a module of `trainer.methods`."""
    tuning: Resolved
    checkpoint_seconds: float = 60.0
    """Time between checkpoints, beside those at the end of each epoch."""


class TrainingResult(Outcome):
    """`result.json`."""

    trained_tokens: int = 0
    metrics: dict[str, float] = Field(default_factory=dict)
    checkpoints: dict[int, dict[str, float]] = Field(default_factory=dict)
    """Step and metrics of the checkpoints at the ends of the last epochs, whose adapters can be used."""
