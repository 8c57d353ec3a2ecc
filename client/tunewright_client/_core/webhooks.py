"""The routes of webhooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import httpx2
from pydantic import BaseModel

from ..types import (
    Deleted,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEndpointTest,
    WebhookEndpointWithSecret,
)
from .call import Call
from .endpoints import path_of
from .pages import PageData, list_call

M = TypeVar("M", bound=BaseModel)

ENDPOINTS, DELIVERIES = "/webhook_endpoints", "/webhook_deliveries"


def create_endpoint(body: Mapping[str, Any]) -> Call[WebhookEndpointWithSecret]:
    return Call("POST", ENDPOINTS, _as(WebhookEndpointWithSecret), json=body)


def list_endpoints(after: str | None, limit: int | None) -> Call[PageData[WebhookEndpoint]]:
    return list_call(ENDPOINTS, WebhookEndpoint.model_validate, {"after": after, "limit": limit})


def retrieve_endpoint(id: str) -> Call[WebhookEndpoint]:
    return Call("GET", ENDPOINTS + path_of(id), _as(WebhookEndpoint))


def update_endpoint(id: str, body: Mapping[str, Any]) -> Call[WebhookEndpoint]:
    """What is None is left as it is."""
    given = {name: value for name, value in body.items() if value is not None}
    return Call("POST", ENDPOINTS + path_of(id), _as(WebhookEndpoint), json=given)


def delete_endpoint(id: str) -> Call[Deleted]:
    return Call("DELETE", ENDPOINTS + path_of(id), _as(Deleted))


def rotate_secret(id: str, keep: bool) -> Call[WebhookEndpointWithSecret]:
    body = {"keep_old_secret_active_for_24_hours": keep}
    return Call("POST", f"{ENDPOINTS}{path_of(id)}/rotate_secret", _as(WebhookEndpointWithSecret), json=body)


def test_endpoint(id: str, event_type: str) -> Call[WebhookEndpointTest]:
    path = f"{ENDPOINTS}{path_of(id)}/test"
    return Call("POST", path, _as(WebhookEndpointTest), json={"event_type": event_type}, slow=True)


def event_types() -> Call[list[str]]:
    def parse(response: httpx2.Response) -> list[str]:
        return cast("list[str]", response.json()["data"])

    return Call("GET", "/webhook_event_types", parse)


def list_deliveries(params: Mapping[str, Any]) -> Call[PageData[WebhookDelivery]]:
    return list_call(DELIVERIES, WebhookDelivery.model_validate, params)


def retrieve_delivery(id: str) -> Call[WebhookDelivery]:
    return Call("GET", DELIVERIES + path_of(id), _as(WebhookDelivery))


def replay_delivery(id: str) -> Call[WebhookDelivery]:
    return Call("POST", f"{DELIVERIES}{path_of(id)}/replay", _as(WebhookDelivery))


def _as(model: type[M]) -> Callable[[httpx2.Response], M]:
    return lambda response: model.model_validate_json(response.content)
