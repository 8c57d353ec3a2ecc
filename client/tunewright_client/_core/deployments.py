"""The routes of deployments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx2

from ..types import Deleted, DeploymentRecord
from . import endpoints
from .call import Call
from .pages import PageData, list_call

D = TypeVar("D", bound=DeploymentRecord)
Parse = Callable[[Any], D]
"""Makes a record of a deployment's JSON and binds it to the client that read it."""


def create_deployment(parse: Parse[D], model: str, engine: Mapping[str, Any] | None) -> Call[D]:
    body = {"model": model, **({} if engine is None else {"engine": dict(engine)})}
    return Call("POST", "/deployments", _deployment(parse), json=body)


def list_deployments(parse: Parse[D], after: str | None, limit: int | None) -> Call[PageData[D]]:
    return list_call("/deployments", parse, {"after": after, "limit": limit})


def retrieve_deployment(parse: Parse[D], deployment: str) -> Call[D]:
    return Call("GET", endpoints.path_of("deployments", deployment), _deployment(parse))


def restart_deployment(parse: Parse[D], deployment: str) -> Call[D]:
    return Call("POST", endpoints.path_of("deployments", deployment) + "/restart", _deployment(parse))


def deployment_logs(deployment: str, tail: int | None) -> Call[str]:
    return endpoints.text_of(endpoints.path_of("deployments", deployment) + "/logs", {"tail": tail})


def delete_deployment(deployment: str, force: bool, timeout: float | None, user: str | None) -> Call[Deleted]:
    """The server answers when the deployment's running requests have ended."""
    params = {"force": "true" if force else None, "timeout": None if timeout is None else f"{timeout:g}"}
    return Call(
        "DELETE",
        endpoints.path_of("deployments", deployment),
        lambda response: Deleted.model_validate_json(response.content),
        params=params,
        headers={"x-tunewright-user": user} if user else {},
        slow=True,
    )


def _deployment(parse: Parse[D]) -> Callable[[httpx2.Response], D]:
    return lambda response: parse(response.json())
