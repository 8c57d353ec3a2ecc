"""Where fine-tuning jobs are reported: Weights & Biases (OpenAI's integration `wandb`), TensorBoard and MLflow."""

from __future__ import annotations

import importlib.util

from tunewright.config import Settings, mlflow_keys
from tunewright.kinds.fine_tuning.models import FineTuningRequest
from tunewright.store.records import Job
from tunewright.trainer.spec import MlflowRun, WandbProject

KEY_VARIABLE = "WANDB_API_KEY"
"""In the environment of a trainer (`trainer.reporting`)."""


def why_unreported(settings: Settings) -> str | None:
    """Why jobs are not reported to Weights & Biases; None where they are."""
    why = None
    if settings.jobs.wandb_api_key is None:
        why = "the operator has configured no key (TUNEWRIGHT_WANDB_API_KEY)"
    elif importlib.util.find_spec("wandb") is None:
        why = "its package is not installed here (pip install tunewright[wandb])"
    return _told("Weights & Biases", why)


def why_no_tensorboard() -> str | None:
    """Why no job has TensorBoard's files; None where those that ask for them have."""
    found = any(importlib.util.find_spec(name) is not None for name in ("tensorboard", "tensorboardX"))
    return _told(
        "TensorBoard",
        None if found else "its package is not installed here (pip install tunewright[tensorboard])",
    )


def why_no_mlflow(settings: Settings) -> str | None:
    """Why jobs are not reported to MLflow; None where they are."""
    why = None
    if settings.reports.mlflow_tracking_uri is None:
        why = "the operator has configured no server (--mlflow-tracking-uri)"
    elif importlib.util.find_spec("mlflow") is None:
        why = "its package is not installed here (pip install tunewright[mlflow])"
    return _told("MLflow", why)


def _told(where: str, why: str | None) -> str | None:
    return why and f"The job is not reported to {where}: {why}. All else is done as asked."


def why_not_all(settings: Settings, request: FineTuningRequest) -> str | None:
    """Why a job is not reported to what it asks for; None where it is."""
    reasons = [
        why_unreported(settings) if request.wandb is not None else None,
        why_no_tensorboard() if request.tensorboard else None,
        why_no_mlflow(settings) if request.mlflow is not None else None,
    ]
    return " ".join(reason for reason in reasons if reason) or None


def reported(settings: Settings, job: Job) -> WandbProject | None:
    """Where the job is reported."""
    request = job.request
    assert isinstance(request, FineTuningRequest)
    if request.wandb is None or why_unreported(settings) is not None:
        return None
    return request.wandb.model_copy(update={"base_url": settings.jobs.wandb_base_url})


def has_tensorboard(settings: Settings, job: Job) -> bool:
    """Whether TensorBoard's files are written: by its request, or for all jobs."""
    request = job.request
    assert isinstance(request, FineTuningRequest)
    wanted = request.tensorboard or "tensorboard" in settings.reports.report_to
    return wanted and why_no_tensorboard() is None


def mlflow_run(settings: Settings, job: Job) -> MlflowRun | None:
    """Its run in MLflow: by its request, or for all jobs."""
    request = job.request
    assert isinstance(request, FineTuningRequest)
    run = request.mlflow or (MlflowRun() if "mlflow" in settings.reports.report_to else None)
    if run is None or why_no_mlflow(settings) is not None:
        return None
    return run.model_copy(update={"tracking_uri": settings.reports.mlflow_tracking_uri})


def keys_of(settings: Settings, job: Job) -> dict[str, str]:
    """The variables with the operator's keys that the job's trainer gets."""
    key = settings.jobs.wandb_api_key
    wandb = {KEY_VARIABLE: key.get_secret_value()} if key and reported(settings, job) else {}
    return wandb | (mlflow_keys() if mlflow_run(settings, job) is not None else {})
