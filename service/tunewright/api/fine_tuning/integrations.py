"""OpenAI's `integrations` of a job: where it is reported."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tunewright.trainer.spec import WandbProject
from tunewright.wire import Body

Name = Annotated[str, Field(min_length=1, max_length=128)]


class Wandb(Body):
    """A project of Weights & Biases."""

    project: Name
    name: Name | None = Field(None, description="Of the run; the job's id by default.")
    entity: Name | None = Field(None, description="The team or user; by default the owner of the key.")
    tags: Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=50)] | None = (
        None
    )


class Integration(Body):
    """OpenAI's integration of type `wandb`, the only one."""

    type: Literal["wandb"]
    wandb: Wandb

    @classmethod
    def of(cls, project: WandbProject) -> Integration:
        shown = project.model_dump(exclude={"base_url"}) | {"tags": list(project.tags) or None}
        return cls(type="wandb", wandb=Wandb(**shown))


def project_of(integrations: list[Integration] | None) -> WandbProject | None:
    if not integrations:
        return None
    asked = integrations[0].wandb
    return WandbProject(
        project=asked.project, name=asked.name, entity=asked.entity, tags=tuple(asked.tags or ())
    )
