"""Requests and answers of `/v1/organization`, shaped like OpenAI's admin API."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from tunewright.store.keys import ApiKey, Scope
from tunewright.store.limits import Limits
from tunewright.store.projects import Project
from tunewright.wire import Body, Wire

_LONGEST_LIFE = 10 * 365 * 86_400
Name = Annotated[str, Field(min_length=1, max_length=128)]
_EXPIRES = Field(
    None, ge=60, le=_LONGEST_LIFE, description="Seconds until the key expires; never where it is absent."
)


_MOST = 10**15
Rate = Annotated[int, Field(strict=True, ge=1, le=_MOST)] | None
Quota = Annotated[int, Field(strict=True, ge=0, le=_MOST)] | None


class KeyLimits(Body):
    """Limits that are set; null takes one away, and those that are left out stay."""

    requests_per_minute: Rate = Field(None, description="Generations and tokenizations.")
    tokens_per_minute: Rate = Field(None, description="Of prompts and answers together.")
    concurrent_requests: Rate = Field(None, description="Generations in flight, streamed or not.")
    gpu_hours_per_month: Quota = Field(
        None,
        description="For which jobs have GPUs, in a calendar month (UTC). Once they are used, no more jobs are "
        "created; those that were go on.",
    )

    def on(self, before: Limits) -> Limits:
        """What holds from now on."""
        return replace(before, **self.model_dump(include=self.model_fields_set))


class ProjectLimits(KeyLimits):
    queued_jobs: Quota = Field(None, description="Jobs of every kind that wait; more are refused.")
    running_jobs: Rate = Field(None, description="Jobs of every kind; more wait.")
    stored_bytes: Quota = Field(None, description="Of files, models and parts of uploads.")
    adapters: Quota = Field(None, description="More are neither registered nor trained.")


class LimitsObject(Wire):
    """What a project or a key may have at most; null: any number. Keys have the first four alone."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None
    gpu_hours_per_month: int | None
    queued_jobs: int | None = None
    running_jobs: int | None = None
    stored_bytes: int | None = None
    adapters: int | None = None

    @classmethod
    def of(cls, limits: Limits) -> LimitsObject:
        return cls(**asdict(limits))


Bases = Annotated[list[str], Field(min_length=1, max_length=1000)] | None
_BASES = "The bases and deployables that the project may use, list and name; null: all."


class CreateProject(Body):
    name: Name
    limits: ProjectLimits | None = None
    bases: Bases = Field(None, description=_BASES)


class ModifyProject(Body):
    name: Name | None = None
    limits: ProjectLimits | None = None
    bases: Bases = Field(None, description=_BASES + " They stay where this is left out.")


class ProjectObject(Wire):
    """A tenant. What belongs to it is not found by the keys of other projects."""

    id: str
    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: int
    archived_at: int | None = Field(description="Since then its keys are refused.")
    status: Literal["active", "archived"]
    limits: LimitsObject
    bases: list[str] | None = Field(description=_BASES)

    @classmethod
    def of(cls, project: Project) -> ProjectObject:
        archived_at = project.archived_at
        return cls(
            id=project.id,
            name=project.name,
            created_at=int(project.created_at),
            archived_at=int(archived_at) if archived_at is not None else None,
            status="active" if archived_at is None else "archived",
            limits=LimitsObject.of(project.limits),
            bases=list(project.bases) if project.bases is not None else None,
        )


class CreateProjectKey(Body):
    name: Name
    scopes: list[Scope] = Field(
        default=[Scope.READ, Scope.INFER, Scope.TRAIN],
        min_length=1,
        max_length=len(Scope),
        description="read: everything that is looked at; infer: generations and graders; train: everything that is "
        "created, changed or deleted; admin: the project's keys.",
    )
    expires_in_seconds: int | None = _EXPIRES
    limits: KeyLimits | None = None

    @field_validator("scopes")
    @classmethod
    def _once(cls, value: list[Scope]) -> list[Scope]:
        return list(dict.fromkeys(value))


class ModifyKey(Body):
    limits: KeyLimits


class CreateAdminKey(Body):
    name: Name
    expires_in_seconds: int | None = _EXPIRES


class RotateKey(Body):
    overlap_seconds: int = Field(
        0, ge=0, le=30 * 86_400, description="For which the old key is still taken; 0: it is refused at once."
    )


class Owner(Wire):
    """OpenAI's field for the account that a key belongs to: here keys belong to projects, and to nobody beside."""

    type: Literal["service_account", "user"]


class ProjectKeyObject(Wire):
    id: str
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    project_id: str
    redacted_value: str
    scopes: list[Scope]
    created_at: int
    expires_at: int | None
    last_used_at: int | None = Field(description="Recorded about once an hour.")
    owner: Owner = Owner(type="service_account")
    owner_project_access: Literal["active"] = "active"
    limits: LimitsObject

    @classmethod
    def fields_of(cls, key: ApiKey) -> dict[str, Any]:
        return {
            **_common(key),
            "project_id": key.project,
            "scopes": list(key.scopes),
            "limits": LimitsObject.of(key.limits),
        }


class NewProjectKey(ProjectKeyObject):
    value: str = Field(description="The key. It is shown this once, and stored as a hash only.")


class AdminKeyObject(Wire):
    """A key that may do everything in all projects; without the header `OpenAI-Project` it acts in `default`."""

    id: str
    object: Literal["organization.admin_api_key"] = "organization.admin_api_key"
    name: str
    redacted_value: str
    created_at: int
    expires_at: int | None
    last_used_at: int | None = Field(description="Recorded about once an hour.")
    owner: Owner = Owner(type="user")

    @classmethod
    def fields_of(cls, key: ApiKey) -> dict[str, Any]:
        return _common(key)


class NewAdminKey(AdminKeyObject):
    value: str = Field(description="The key. It is shown this once, and stored as a hash only.")


class DeletedProjectKey(Wire):
    id: str
    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
    deleted: Literal[True] = True


class DeletedAdminKey(Wire):
    id: str
    object: Literal["organization.admin_api_key.deleted"] = "organization.admin_api_key.deleted"
    deleted: Literal[True] = True


def _common(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "redacted_value": key.redacted,
        "created_at": int(key.created_at),
        "expires_at": int(key.ends_at) if key.ends_at is not None else None,
        "last_used_at": int(key.last_used_at) if key.last_used_at is not None else None,
    }
