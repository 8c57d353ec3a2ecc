"""The audit log. Times are Unix seconds."""

from typing import Any

from .base import Wire


class AuditApiKey(Wire):
    id: str = ""
    type: str = ""


class AuditUser(Wire):
    """Whom a token was for; `email` is the token's subject, whether or not that is an address."""

    id: str = ""
    email: str | None = None


class AuditSession(Wire):
    user: AuditUser = AuditUser()
    ip_address: str | None = None


class AuditActor(Wire):
    """Who has done something. `type` is api_key or session, which is a token."""

    type: str = ""
    api_key: AuditApiKey | None = None
    session: AuditSession | None = None


class AuditProject(Wire):
    id: str = ""
    name: str | None = None


class AuditRequest(Wire):
    """The request. `status` is that of its answer: whether it was done."""

    id: str | None = None
    method: str = ""
    path: str = ""
    status: int | None = None
    ip_address: str | None = None


class AuditResource(Wire):
    id: str = ""


class AuditLog(Wire):
    """Something that was done, or was refused.

    - type: such as project.created, api_key.deleted, resource.created, login.failed, job.started
    - actor: None without a key
    - request: None for what the service has done itself
    - resource: the id or name in the request's path
    """

    id: str
    object: str = "organization.audit_log"
    type: str = ""
    effective_at: int = 0
    project: AuditProject | None = None
    actor: AuditActor | None = None
    request: AuditRequest | None = None
    resource: AuditResource | None = None
    details: dict[str, Any] | None = None
