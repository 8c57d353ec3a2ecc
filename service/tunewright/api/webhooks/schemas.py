"""Endpoints of webhooks as OpenAI's API has them, and the deliveries of events to them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from tunewright.errors import quoted
from tunewright.store.outbox import EVENT_TYPES
from tunewright.store.webhook_records import Delivery, WebhookEndpoint
from tunewright.webhooks.addresses import LONGEST_URL
from tunewright.wire import Body, Wire


def _known(value: str) -> str:
    if value not in EVENT_TYPES:
        raise ValueError(f"there is no event {quoted(value)}; known are {', '.join(EVENT_TYPES)}")
    return value


EventType = Annotated[
    str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": list(EVENT_TYPES)})
]


def _once(value: list[str]) -> list[str]:
    return list(dict.fromkeys(value))


EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=100), AfterValidator(_once)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
URL = Annotated[
    str,
    Field(
        min_length=1,
        max_length=LONGEST_URL,
        description="Where events are sent: https, at a public address. --webhook-host allows others.",
    ),
]


class CreateWebhookEndpoint(Body):
    name: Name
    url: URL
    event_types: EventTypes = Field(description="The events that it is told of.")


class UpdateWebhookEndpoint(Body):
    """What is left out stays."""

    name: Name | None = None
    url: URL | None = None
    event_types: EventTypes | None = Field(None, description="All events that it is told of from now on.")


class RotateWebhookSecret(Body):
    keep_old_secret_active_for_24_hours: bool = Field(
        False, strict=True, description="Whether the secret before signs too for 24 hours."
    )


class SendWebhookTest(Body):
    event_type: EventType = Field(description="The type of the event that is sent, about an object `test`.")


class WebhookEndpointObject(Wire):
    """An address that is told of events."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    name: str
    url: str
    event_types: list[str]
    created_at: int
    updated_at: int = Field(description="When it or its secret was changed last.")
    signing_secret_hint: str = Field(description="The end of its secret.")

    @classmethod
    def of(cls, endpoint: WebhookEndpoint) -> WebhookEndpointObject:
        return cls(**_fields(endpoint))


class WebhookEndpointWithSecret(WebhookEndpointObject):
    """An endpoint with its secret, which is shown only here."""

    signing_secret: str = Field(
        repr=False, description="The key of its signatures, for `OPENAI_WEBHOOK_SECRET` of the receiver."
    )

    @classmethod
    def with_secret(cls, endpoint: WebhookEndpoint, secret: str) -> WebhookEndpointWithSecret:
        return cls(**_fields(endpoint), signing_secret=secret)


class WebhookEndpointTest(Wire):
    """What the endpoint has answered to a test."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    success: Literal[True] = Field(True, description="There was an answer; the status says which.")
    status_code: int


class WebhookEventTypes(Wire):
    """All types of events."""

    object: Literal["list"] = "list"
    data: list[str]


class WebhookEventObject(Wire):
    """An event as endpoints get it."""

    id: str = Field(description="The header `webhook-id` of each attempt.")
    object: Literal["event"] = "event"
    created_at: int
    type: str
    data: dict[str, Any] = Field(description="`id` is of the job, deployment, adapter or alias.")


class WebhookAttempt(Wire):
    created_at: int
    seconds: float
    status_code: int | None = Field(description="Null where there was no answer.")
    error: str | None = Field(description="Why it has failed; null where the event was taken.")


class WebhookDeliveryObject(Wire):
    """The delivery of an event to an endpoint."""

    id: str
    object: Literal["webhook_delivery"] = "webhook_delivery"
    webhook_endpoint_id: str
    event: WebhookEventObject
    state: Literal["pending", "delivered", "dead_letter"] = Field(
        description="dead_letter: all attempts have failed, and it is sent again only on request."
    )
    created_at: int
    ended_at: int | None
    next_attempt_at: int | None = Field(description="When the next attempt is due, while it is pending.")
    attempts: list[WebhookAttempt] = Field(description="Those that have ended, oldest first; the newest 50.")

    @classmethod
    def of(cls, delivery: Delivery) -> WebhookDeliveryObject:
        event = delivery.event
        return cls(
            id=delivery.id,
            webhook_endpoint_id=delivery.endpoint_id,
            event=WebhookEventObject(
                id=event.id, created_at=int(event.created_at), type=event.type, data=event.data
            ),
            state=delivery.state.value,
            created_at=int(delivery.created_at),
            ended_at=int(delivery.ended_at) if delivery.ended_at is not None else None,
            next_attempt_at=int(delivery.due_at) if delivery.ended_at is None else None,
            attempts=[
                WebhookAttempt(
                    created_at=int(one.at), seconds=one.seconds, status_code=one.status, error=one.error
                )
                for one in delivery.attempts
            ],
        )


def _fields(endpoint: WebhookEndpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": endpoint.event_types,
        "created_at": int(endpoint.created_at),
        "updated_at": int(endpoint.updated_at),
        "signing_secret_hint": endpoint.hint,
    }
