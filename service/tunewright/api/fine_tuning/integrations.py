"""`integrations` of a job: where it is reported. OpenAI has `wandb` alone."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tunewright.kinds.fine_tuning.models import FineTuningRequest
from tunewright.trainer.spec import MlflowRun, WandbProject
from tunewright.wire import Body

Name = Annotated[str, Field(min_length=1, max_length=128)]
Tag = Annotated[str, Field(min_length=1, max_length=64)]


class Wandb(Body):
    """A project of Weights & Biases."""

    project: Name
    name: Name | None = Field(None, description="Of the run; the job's id by default.")
    entity: Name | None = Field(None, description="The team or user; by default the owner of the key.")
    tags: Annotated[list[Tag], Field(max_length=50)] | None = None


class Mlflow(Body):
    """A run in MLflow."""

    experiment: Name | None = Field(None, description="By default `tunewright`.")
    name: Name | None = Field(None, description="Of the run; the job's id by default.")
    tags: Annotated[dict[Tag, Name], Field(max_length=50)] | None = None


class Integration(Body):
    """OpenAI's integration of type `wandb`; and `tensorboard`, whose files are kept with the job, and `mlflow`."""

    type: Literal["wandb", "tensorboard", "mlflow"]
    wandb: Wandb | None = Field(None, description="Required for the type `wandb`.", validate_default=True)
    mlflow: Mlflow | None = None

    @field_validator("wandb")
    @classmethod
    def _is_there(cls, wandb: Wandb | None, info: ValidationInfo) -> Wandb | None:
        if wandb is None and info.data.get("type") == "wandb":
            raise PydanticCustomError(
                "missing", "Field required: an integration of type wandb has a `project`"
            )
        return wandb

    @model_validator(mode="after")
    def _check_type(self) -> Self:
        for name in ("wandb", "mlflow"):
            if name != self.type and getattr(self, name) is not None:
                raise ValueError(f"an integration of type {self.type} has no `{name}`")
        return self


def _check_once(integrations: list[Integration]) -> list[Integration]:
    types = [one.type for one in integrations]
    if len(set(types)) < len(types):
        raise ValueError("one integration of each type at most")
    return integrations


Integrations = Annotated[list[Integration], Field(max_length=3), AfterValidator(_check_once)]


def integrations_of(integrations: list[Integration] | None) -> dict[str, Any]:
    """The fields of the stored request."""
    asked = {one.type: one for one in integrations or ()}
    found: dict[str, Any] = {"tensorboard": "tensorboard" in asked}
    if "wandb" in asked and (wandb := asked["wandb"].wandb) is not None:
        found["wandb"] = WandbProject(
            project=wandb.project, name=wandb.name, entity=wandb.entity, tags=tuple(wandb.tags or ())
        )
    if "mlflow" in asked:
        run = asked["mlflow"].mlflow or Mlflow()
        found["mlflow"] = MlflowRun(experiment=run.experiment, name=run.name, tags=run.tags or {})
    return found


def integrations_shown(request: FineTuningRequest) -> list[Integration]:
    """The integrations of a stored request."""
    found = []
    if (project := request.wandb) is not None:
        fields = project.model_dump(exclude={"base_url"}) | {"tags": list(project.tags) or None}
        found.append(Integration(type="wandb", wandb=Wandb(**fields)))
    if request.tensorboard:
        found.append(Integration(type="tensorboard"))
    if (run := request.mlflow) is not None:
        of_run = Mlflow(experiment=run.experiment, name=run.name, tags=run.tags or None)
        found.append(Integration(type="mlflow", mlflow=of_run))
    return found
