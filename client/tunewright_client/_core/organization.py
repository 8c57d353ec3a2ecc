"""The routes of projects and of their keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from ..types import AdminApiKey, ApiKey, Deleted, NewAdminApiKey, NewApiKey, Project
from . import endpoints
from .call import Call
from .pages import PageData, list_call

T = TypeVar("T", bound=BaseModel)
ADMIN_KEYS = ("organization", "admin_api_keys")


def create_project(name: str, bases: Collection[str] | None) -> Call[Project]:
    body = {"name": name, **({"bases": list(bases)} if bases is not None else {})}
    return _call("POST", ("organization", "projects"), Project, body)


def list_projects(archived: bool, after: str | None, limit: int | None) -> Call[PageData[Project]]:
    params = {"include_archived": "true" if archived else None, "after": after, "limit": limit}
    return list_call("/organization/projects", Project.model_validate, params)


def limit_bases(project: str, bases: Collection[str] | None) -> Call[Project]:
    return _call("POST", _project(project), Project, {"bases": list(bases) if bases is not None else None})


def retrieve_project(project: str) -> Call[Project]:
    return _call("GET", _project(project), Project)


def rename_project(project: str, name: str) -> Call[Project]:
    return _call("POST", _project(project), Project, {"name": name})


def limit_project(project: str, limits: Mapping[str, int | None]) -> Call[Project]:
    return _call("POST", _project(project), Project, {"limits": dict(limits)})


def archive_project(project: str) -> Call[Project]:
    return _call("POST", (*_project(project), "archive"), Project)


def create_key(
    project: str,
    name: str,
    scopes: Collection[str] | None,
    expires_in: int | None,
    limits: Mapping[str, int | None] | None = None,
) -> Call[NewApiKey]:
    body: dict[str, Any] = {"name": name, "expires_in_seconds": expires_in}
    if scopes is not None:
        body["scopes"] = list(scopes)
    if limits is not None:
        body["limits"] = dict(limits)
    return _call("POST", _keys(project), NewApiKey, body)


def list_keys(project: str, after: str | None, limit: int | None) -> Call[PageData[ApiKey]]:
    path = endpoints.path_of(*_keys(project))
    return list_call(path, ApiKey.model_validate, {"after": after, "limit": limit})


def retrieve_key(project: str, key: str) -> Call[ApiKey]:
    return _call("GET", (*_keys(project), key), ApiKey)


def limit_key(project: str, key: str, limits: Mapping[str, int | None]) -> Call[ApiKey]:
    return _call("POST", (*_keys(project), key), ApiKey, {"limits": dict(limits)})


def rotate_key(project: str, key: str, overlap: int) -> Call[NewApiKey]:
    return _call("POST", (*_keys(project), key, "rotate"), NewApiKey, {"overlap_seconds": overlap})


def revoke_key(project: str, key: str) -> Call[Deleted]:
    return _call("DELETE", (*_keys(project), key), Deleted)


def create_admin_key(name: str, expires_in: int | None) -> Call[NewAdminApiKey]:
    return _call("POST", ADMIN_KEYS, NewAdminApiKey, {"name": name, "expires_in_seconds": expires_in})


def list_admin_keys(after: str | None, limit: int | None) -> Call[PageData[AdminApiKey]]:
    path = endpoints.path_of(*ADMIN_KEYS)
    return list_call(path, AdminApiKey.model_validate, {"after": after, "limit": limit})


def retrieve_admin_key(key: str) -> Call[AdminApiKey]:
    return _call("GET", (*ADMIN_KEYS, key), AdminApiKey)


def rotate_admin_key(key: str, overlap: int) -> Call[NewAdminApiKey]:
    return _call("POST", (*ADMIN_KEYS, key, "rotate"), NewAdminApiKey, {"overlap_seconds": overlap})


def revoke_admin_key(key: str) -> Call[Deleted]:
    return _call("DELETE", (*ADMIN_KEYS, key), Deleted)


def _project(project: str) -> tuple[str, ...]:
    return "organization", "projects", project


def _keys(project: str) -> tuple[str, ...]:
    return (*_project(project), "api_keys")


def _call(
    method: str, parts: tuple[str, ...], made: type[T], body: Mapping[str, Any] | None = None
) -> Call[T]:
    return Call(
        method,
        endpoints.path_of(*parts),
        lambda response: made.model_validate_json(response.content),
        json=None if body is None else dict(body),
    )
