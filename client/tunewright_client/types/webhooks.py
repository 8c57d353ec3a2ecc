"""Webhooks. Times are Unix seconds."""

from typing import Any

from pydantic import Field

from .base import Wire


class WebhookEndpoint(Wire):
    """An address that is told of events.

    - event_types: the events that it is told of
    - signing_secret_hint: the end of its secret
    """

    id: str
    object: str = "webhook_endpoint"
    name: str = ""
    url: str = ""
    event_types: list[str] = Field(default_factory=list[str])
    created_at: int = 0
    updated_at: int = 0
    signing_secret_hint: str = ""


class WebhookEndpointWithSecret(WebhookEndpoint):
    """An endpoint that was created, or whose secret was rotated.

    - signing_secret: for the receiver's `OpenAI(webhook_secret=...)`; it is not shown again
    """

    signing_secret: str = Field(repr=False)


class WebhookEndpointTest(Wire):
    """The endpoint's answer to a test: its HTTP status."""

    object: str = "webhook_endpoint.test"
    webhook_endpoint_id: str = ""
    event_type: str = ""
    success: bool = True
    status_code: int


class WebhookEvent(Wire):
    """An event as endpoints get it. `id` is the header `webhook-id`; `data["id"]` is of what the event is about."""

    id: str
    object: str = "event"
    created_at: int = 0
    type: str = ""
    data: dict[str, Any] = Field(default_factory=dict)


class WebhookAttempt(Wire):
    """An attempt to deliver: the HTTP status of the answer, if there was one, and why it has failed, if it has."""

    created_at: int = 0
    seconds: float = 0.0
    status_code: int | None = None
    error: str | None = None


class WebhookDelivery(Wire):
    """The delivery of an event to an endpoint.

    - state: pending, delivered or dead_letter (all attempts have failed)
    - next_attempt_at: None where it is not pending
    - attempts: those that have ended, oldest first
    """

    id: str
    object: str = "webhook_delivery"
    webhook_endpoint_id: str = ""
    event: WebhookEvent
    state: str = ""
    created_at: int = 0
    ended_at: int | None = None
    next_attempt_at: int | None = None
    attempts: list[WebhookAttempt] = Field(default_factory=list[WebhookAttempt])
