"""Frozen records of the tables of webhooks. Times are Unix seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunewright.store.states import DeliveryState


@dataclass(frozen=True)
class WebhookEndpoint:
    """An address that is told of events."""

    seq: int
    id: str
    project: str
    name: str
    url: str
    event_types: list[str]
    created_at: float
    updated_at: float
    salt: str
    """What its secret is derived from, with the key of the data folder (`webhooks.signing`)."""
    hint: str
    """The end of the secret."""
    old_salt: str | None
    """Of the secret before, which signs too until `old_until`."""
    old_until: float | None


@dataclass(frozen=True)
class Attempt:
    """An attempt to deliver that has ended."""

    at: float
    seconds: float
    status: int | None
    """The HTTP status of the answer; None where there was none."""
    error: str | None
    """Why it has failed; None where the endpoint took the event."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class WebhookEvent:
    """What is told; `id` is the same in all of its deliveries, and each of their attempts."""

    id: str
    type: str
    created_at: float
    data: dict[str, Any]


@dataclass(frozen=True)
class Delivery:
    """The delivery of an event to an endpoint."""

    seq: int
    id: str
    project: str
    endpoint_id: str
    event: WebhookEvent
    state: DeliveryState
    created_at: float
    due_at: float
    """When the next attempt is due, while it is pending."""
    sent_at: float | None
    """When the attempt began that has not ended."""
    ended_at: float | None
    tries: int
    """Attempts since it was created or replayed, with one that has not ended."""
    attempts: Sequence[Attempt]
    """The newest that have ended, oldest first."""
