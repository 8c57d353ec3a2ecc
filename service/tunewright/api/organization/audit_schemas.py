"""Answers of `/v1/organization/audit_logs`, shaped like those of OpenAI's admin API."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tunewright.store.audit import AuditLog
from tunewright.wire import Wire


class AuditApiKey(Wire):
    id: str
    type: Literal["service_account"] = "service_account"


class AuditUser(Wire):
    id: str
    email: str | None = Field(description="The subject of the token, whether or not that is an address.")


class AuditSession(Wire):
    user: AuditUser
    ip_address: str | None


class AuditActor(Wire):
    """A key, or the user of a token."""

    type: Literal["api_key", "session"]
    api_key: AuditApiKey | None = None
    session: AuditSession | None = None


class AuditProject(Wire):
    id: str
    name: str | None


class AuditRequest(Wire):
    """The request, which OpenAI's API does not tell."""

    id: str | None
    method: str
    path: str = Field(description="Its first 200 characters.")
    status: int | None = Field(description="Of the answer: whether it was done.")
    ip_address: str | None


class AuditResource(Wire):
    id: str = Field(description="The id or name in the path.")


class AuditLogObject(Wire):
    id: str
    object: Literal["organization.audit_log"] = "organization.audit_log"
    type: str = Field(
        description="OpenAI's: project.created, project.updated, project.archived, api_key.created, api_key.updated, "
        "api_key.deleted, resource.deleted, login.failed; and resource.created, resource.updated, request.refused, "
        "job.started."
    )
    effective_at: int
    project: AuditProject | None
    actor: AuditActor | None = Field(description="Null without a key.")
    request: AuditRequest | None = Field(description="Null for what the service has done itself.")
    resource: AuditResource | None
    details: dict[str, Any] | None

    @classmethod
    def of(cls, one: AuditLog, names: dict[str, str]) -> AuditLogObject:
        request = None
        if one.method is not None and one.path is not None:
            request = AuditRequest(
                id=one.request_id, method=one.method, path=one.path, status=one.status, ip_address=one.peer
            )
        return cls(
            id=one.id,
            type=one.type,
            effective_at=int(one.effective_at),
            project=AuditProject(id=one.project, name=names.get(one.project)) if one.project else None,
            actor=_actor(one),
            request=request,
            resource=AuditResource(id=one.resource) if one.resource is not None else None,
            details=dict(one.details) if one.details else None,
        )


def _actor(one: AuditLog) -> AuditActor | None:
    if one.subject is not None:
        user = AuditUser(id=one.actor, email=one.subject)
        return AuditActor(type="session", session=AuditSession(user=user, ip_address=one.peer))
    return AuditActor(type="api_key", api_key=AuditApiKey(id=one.actor)) if one.actor else None
