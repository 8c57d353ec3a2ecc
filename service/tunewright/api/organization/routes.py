"""`/v1/organization`: projects, the keys of each, and the keys of admins."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Annotated

from fastapi import APIRouter, Query

from tunewright.api.http.access import Principal
from tunewright.api.http.context import OrganizationContext, SentBy, ServiceContext, WholeContext
from tunewright.api.http.errors import responses
from tunewright.api.http.wire import After, Page, page_of
from tunewright.api.organization.schemas import (
    AdminKeyObject,
    CreateAdminKey,
    CreateProject,
    CreateProjectKey,
    DeletedAdminKey,
    DeletedProjectKey,
    ModifyKey,
    ModifyProject,
    NewAdminKey,
    NewProjectKey,
    ProjectKeyObject,
    ProjectObject,
    RotateKey,
)
from tunewright.errors import Forbidden, InvalidRequest, NotFound, quoted
from tunewright.store.keys import ApiKey, KeyStore, Scope
from tunewright.store.limits import NO_LIMITS
from tunewright.store.projects import Project

router = APIRouter(prefix="/v1/organization", tags=["Organization"])

_PROJECTS, _KEYS, _ADMIN_KEYS = "/projects", "/projects/{project_id}/api_keys", "/admin_api_keys"
Limit = Annotated[int, Query(ge=1, le=100)]


# projects


@router.get(_PROJECTS, summary="List projects", responses=responses(400))
def list_projects(
    context: WholeContext,
    include_archived: Annotated[bool, Query(description="Also those that are archived.")] = False,
    after: After = None,
    limit: Limit = 20,
) -> Page[ProjectObject]:
    """Newest first."""
    found, more = context.store.projects.list(archived=include_archived, after=after, limit=limit)
    return Page(**page_of([ProjectObject.of(project) for project in found], more))


@router.post(_PROJECTS, summary="Create a project", responses=responses(400, 507))
def create_project(context: WholeContext, body: CreateProject) -> ProjectObject:
    """A tenant of its own, with nothing in it. Make a key for it then."""
    limits = body.limits.on(NO_LIMITS) if body.limits else NO_LIMITS
    _check_bases(context, body.bases)
    return ProjectObject.of(context.store.projects.create(body.name, limits, body.bases))


@router.get("/projects/{project_id}", summary="Retrieve a project", responses=responses(404))
def retrieve_project(context: OrganizationContext, sender: SentBy, project_id: str) -> ProjectObject:
    return ProjectObject.of(_project(context, sender, project_id))


@router.post("/projects/{project_id}", summary="Modify a project", responses=responses(400, 404, 507))
def modify_project(context: WholeContext, project_id: str, body: ModifyProject) -> ProjectObject:
    """Rename it, or set its limits or its bases, which hold from the next request on. Jobs and deployments that were
    created go on."""
    project = _known(context.store.projects.get(project_id), project_id)
    _check_bases(context, body.bases)
    if "bases" in body.model_fields_set:
        context.store.projects.limit_bases(project_id, body.bases)
    limits = body.limits.on(project.limits) if body.limits else None
    changed = context.store.projects.modify(project_id, name=body.name, limits=limits)
    return ProjectObject.of(_known(changed, project_id))


@router.post(
    "/projects/{project_id}/archive", summary="Archive a project", responses=responses(400, 404, 507)
)
def archive_project(context: WholeContext, project_id: str) -> ProjectObject:
    """Its keys are refused from now on. What belongs to it stays, and jobs and deployments go on: end them first."""
    return ProjectObject.of(_known(context.store.projects.archive(project_id), project_id))


# the keys of a project


@router.get(_KEYS, summary="List the keys of a project", responses=responses(400, 404))
def list_keys(
    context: OrganizationContext, sender: SentBy, project_id: str, after: After = None, limit: Limit = 20
) -> Page[ProjectKeyObject]:
    """Newest first, without those that were revoked."""
    found, more = _keys(context, sender, project_id).list(after=after, limit=limit)
    return Page(**page_of([ProjectKeyObject(**ProjectKeyObject.fields_of(key)) for key in found], more))


@router.post(_KEYS, summary="Create a key of a project", responses=responses(400, 404, 507))
def create_key(
    context: OrganizationContext, sender: SentBy, project_id: str, body: CreateProjectKey
) -> NewProjectKey:
    """`value` is the key, which is shown this once."""
    keys = _keys(context, sender, project_id)
    if sender.key is None and not context.store.keys.any():
        raise InvalidRequest(
            "The service would ask for keys then, and there is none for its operator: make that one first, with "
            "POST /v1/organization/admin_api_keys, or start the service with TUNEWRIGHT_API_KEY.",
            code="no_admin_key",
        )
    _refuse_more(sender, body.scopes)
    limits = body.limits.on(NO_LIMITS) if body.limits else NO_LIMITS
    key, value = keys.create(
        body.name, body.scopes, expires_at=_expires_at(body.expires_in_seconds), limits=limits
    )
    return NewProjectKey(**ProjectKeyObject.fields_of(key), value=value)


@router.get(f"{_KEYS}/{{key_id}}", summary="Retrieve a key of a project", responses=responses(404))
def retrieve_key(
    context: OrganizationContext, sender: SentBy, project_id: str, key_id: str
) -> ProjectKeyObject:
    key = _found(_keys(context, sender, project_id).get(key_id), key_id)
    return ProjectKeyObject(**ProjectKeyObject.fields_of(key))


@router.post(f"{_KEYS}/{{key_id}}", summary="Limit a key of a project", responses=responses(400, 404, 507))
def limit_key(
    context: OrganizationContext, sender: SentBy, project_id: str, key_id: str, body: ModifyKey
) -> ProjectKeyObject:
    """Set rates of its own, which hold beside those of its project from the next request on."""
    keys = _keys(context, sender, project_id)
    key = _found(keys.get(key_id), key_id)
    limited = _found(keys.limit(key_id, body.limits.on(key.limits)), key_id)
    return ProjectKeyObject(**ProjectKeyObject.fields_of(limited))


@router.post(
    f"{_KEYS}/{{key_id}}/rotate", summary="Rotate a key of a project", responses=responses(400, 404, 507)
)
def rotate_key(
    context: OrganizationContext, sender: SentBy, project_id: str, key_id: str, body: RotateKey | None = None
) -> NewProjectKey:
    """A new key with the name and scopes of this one, which is refused from now on or after an overlap."""
    keys = _keys(context, sender, project_id)
    _refuse_more(sender, _found(keys.get(key_id), key_id).scopes)
    rotated = keys.rotate(key_id, overlap=body.overlap_seconds if body else 0)
    if rotated is None:  # it was revoked just now
        raise _no_key(key_id)
    return NewProjectKey(**ProjectKeyObject.fields_of(rotated[0]), value=rotated[1])


@router.delete(f"{_KEYS}/{{key_id}}", summary="Revoke a key of a project", responses=responses(404, 507))
def delete_key(
    context: OrganizationContext, sender: SentBy, project_id: str, key_id: str
) -> DeletedProjectKey:
    """The next request with it is refused."""
    if not _keys(context, sender, project_id).revoke(key_id):
        raise _no_key(key_id)
    return DeletedProjectKey(id=key_id)


# the keys of admins


@router.get(_ADMIN_KEYS, summary="List the keys of admins", responses=responses(400))
def list_admin_keys(context: WholeContext, after: After = None, limit: Limit = 20) -> Page[AdminKeyObject]:
    """Newest first, without those that were revoked."""
    found, more = context.store.keys.list(after=after, limit=limit)
    return Page(**page_of([AdminKeyObject(**AdminKeyObject.fields_of(key)) for key in found], more))


@router.post(_ADMIN_KEYS, summary="Create a key of an admin", responses=responses(400, 507))
def create_admin_key(context: WholeContext, body: CreateAdminKey) -> NewAdminKey:
    """`value` is the key, which is shown this once. A service that had no key asks for one from now on."""
    key, value = context.store.keys.create(
        body.name, list(Scope), expires_at=_expires_at(body.expires_in_seconds), for_admin=True
    )
    return NewAdminKey(**AdminKeyObject.fields_of(key), value=value)


@router.get(f"{_ADMIN_KEYS}/{{key_id}}", summary="Retrieve a key of an admin", responses=responses(404))
def retrieve_admin_key(context: WholeContext, key_id: str) -> AdminKeyObject:
    return AdminKeyObject(**AdminKeyObject.fields_of(_found(context.store.keys.get(key_id), key_id)))


@router.post(
    f"{_ADMIN_KEYS}/{{key_id}}/rotate", summary="Rotate a key of an admin", responses=responses(400, 404, 507)
)
def rotate_admin_key(context: WholeContext, key_id: str, body: RotateKey | None = None) -> NewAdminKey:
    """A new key in the place of this one, which is refused from now on or after an overlap."""
    rotated = context.store.keys.rotate(key_id, overlap=body.overlap_seconds if body else 0)
    if rotated is None:
        raise _no_key(key_id)
    return NewAdminKey(**AdminKeyObject.fields_of(rotated[0]), value=rotated[1])


@router.delete(f"{_ADMIN_KEYS}/{{key_id}}", summary="Revoke a key of an admin", responses=responses(404, 507))
def delete_admin_key(context: WholeContext, key_id: str) -> DeletedAdminKey:
    """The next request with it is refused."""
    if not context.store.keys.revoke(key_id):
        raise _no_key(key_id)
    return DeletedAdminKey(id=key_id)


def _project(context: ServiceContext, sender: Principal, id: str) -> Project:
    """The project, where the sender may manage it: its own, or any for the operator. Raises NotFound."""
    if not sender.is_operator and id != sender.project:
        raise _no_project(id)
    return _known(context.store.projects.get(id), id)


def _check_bases(context: ServiceContext, bases: Collection[str] | None) -> None:
    """Raises InvalidRequest for a name that is none of the operator's models."""
    known = [base.name for base in (*context.bases(), *context.deployables())]
    for name in bases or ():
        if name not in known:
            raise InvalidRequest(
                f"No such base: {quoted(name)}. Here are {', '.join(known)}.",
                param="bases",
                code="model_not_found",
            )


def _keys(context: ServiceContext, sender: Principal, project_id: str) -> KeyStore:
    """The keys of a project that the sender may manage. Raises NotFound."""
    return context.store.of(_project(context, sender, project_id).id).keys


def _refuse_more(sender: Principal, scopes: Collection[Scope]) -> None:
    """Raises Forbidden where a key would get what the sender's key does not have."""
    more = sorted(set(scopes) - sender.scopes)
    if more and not sender.is_operator:
        raise Forbidden(
            f"A key can pass on its own scopes only, and this one does not have {', '.join(more)}.",
            code="insufficient_permissions",
        )


def _expires_at(seconds: int | None) -> float | None:
    return time.time() + seconds if seconds is not None else None


def _known(project: Project | None, id: str) -> Project:
    if project is None:
        raise _no_project(id)
    return project


def _found(key: ApiKey | None, id: str) -> ApiKey:
    if key is None:
        raise _no_key(id)
    return key


def _no_project(id: str) -> NotFound:
    return NotFound(f"No such project: {quoted(id)}.", param="project_id", code="project_not_found")


def _no_key(id: str) -> NotFound:
    return NotFound(f"No such key: {quoted(id)}.", param="key_id", code="api_key_not_found")
