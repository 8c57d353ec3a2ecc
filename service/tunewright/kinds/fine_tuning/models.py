"""The models of a fine-tuning job's columns."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from tunewright.graders.models import Grader
from tunewright.jobs.kinds import JobResult
from tunewright.kinds.data import DataOptions
from tunewright.kinds.evaluation.models import EvaluatedModel
from tunewright.kinds.fine_tuning.evaluated import EvaluateRequest
from tunewright.plan.cost import Cost
from tunewright.plan.forgetting import Forgetting
from tunewright.plan.methods import MethodName
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.plan.prediction import Planned
from tunewright.plan.stopping import BestCheckpoint
from tunewright.plan.time import Measured
from tunewright.trainer.spec import MlflowRun, WandbProject

TRAINING_FILE, VALIDATION_FILE, PARENT = "training_file", "validation_file", "parent"
"""Roles of a job's inputs: the training files, that of the request first; a file of held-out rows; and the weights of
the model from which training continues."""
GRADING_MODEL = "grader.model"
"""The role of the weights of models that grade."""


class FineTuningRequest(BaseModel):
    """The parameters of the request."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str
    """The name in the request: a base, or the model from which training continues."""
    suffix: str | None = None
    chat_template: str | None = None
    data: DataOptions = DataOptions()
    method: MethodName = "supervised"
    """OpenAI's method."""
    grader: Grader | None = None
    """Of reinforcement: what grades the answers."""
    grading_models: dict[str, EvaluatedModel] = {}
    """What the models that grade were when the job was created, by the names of their graders."""
    hyperparameters: HyperparameterOptions = HyperparameterOptions()
    tuning: TuningOptions = TuningOptions()
    wandb: WandbProject | None = None
    """OpenAI's integration: where the run is reported."""
    tensorboard: bool = False
    mlflow: MlflowRun | None = None
    """Further integrations."""
    unreported: str | None = None
    """Why it is not, as it was when the job was created."""
    evaluate: EvaluateRequest | None = None
    """The evaluations that the job asks for."""


class FineTuningResult(JobResult):
    """The result of a fine-tuning job."""

    trained_tokens: int | None = None
    best: BestCheckpoint | None = None
    """Which checkpoint the model is; None: the last state, as in rows of earlier versions."""
    planned: Planned | None = None
    """What was predicted before the first step; None in rows of earlier versions, and where the base's files do not say
    enough."""
    measured: Measured | None = None
    """None in rows of earlier versions, and where all was done by one step."""
    cost: Cost | None = None
    """Of what was measured; None where no rate was known."""
    forgetting: Forgetting | None = None
    """None in rows of earlier versions, and where it is not known what the model was before."""
