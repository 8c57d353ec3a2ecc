"""Whether fine-tuning jobs are reported to Weights & Biases: OpenAI's integration `wandb`."""

from __future__ import annotations

import importlib.util

from tunewright.config import Settings
from tunewright.kinds.fine_tuning.models import FineTuningRequest
from tunewright.store.records import Job
from tunewright.trainer.spec import WandbProject

KEY_VARIABLE = "WANDB_API_KEY"
"""In the environment of a trainer (`trainer.reporting`)."""


def why_unreported(settings: Settings) -> str | None:
    """Why jobs are not reported; None where they are."""
    why = None
    if settings.jobs.wandb_api_key is None:
        why = "the operator has configured no key (TUNEWRIGHT_WANDB_API_KEY)"
    elif importlib.util.find_spec("wandb") is None:
        why = "its package is not installed here (pip install tunewright[wandb])"
    return why and f"The job is not reported to Weights & Biases: {why}. All else is done as asked."


def reported(settings: Settings, job: Job) -> WandbProject | None:
    """Where the job is reported."""
    request = job.request
    assert isinstance(request, FineTuningRequest)
    if request.wandb is None or why_unreported(settings) is not None:
        return None
    return request.wandb.model_copy(update={"base_url": settings.jobs.wandb_base_url})
