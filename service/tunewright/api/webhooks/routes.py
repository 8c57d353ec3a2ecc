"""`/v1/webhook_endpoints`: who is told of events, as in OpenAI's API; `/v1/webhook_deliveries`: what was sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Path, Query

from tunewright.api.http.context import Context, ServiceContext
from tunewright.api.http.errors import responses
from tunewright.api.http.wire import After, Deleted, Page, page_of
from tunewright.api.webhooks.schemas import (
    CreateWebhookEndpoint,
    EventType,
    RotateWebhookSecret,
    SendWebhookTest,
    UpdateWebhookEndpoint,
    WebhookDeliveryObject,
    WebhookEndpointObject,
    WebhookEndpointTest,
    WebhookEndpointWithSecret,
    WebhookEventTypes,
)
from tunewright.errors import Internal, InvalidRequest, NotFound, TooManyRequests, quoted
from tunewright.ids import new_id
from tunewright.store.outbox import EVENT_TYPES
from tunewright.store.states import DeliveryState
from tunewright.store.webhook_records import WebhookEndpoint, WebhookEvent
from tunewright.webhooks.addresses import AllowedHosts, check_url
from tunewright.webhooks.signing import KeyLost, SigningKey, hint_of, new_salt
from tunewright.wire import Text

router = APIRouter(prefix="/v1", tags=["Webhooks"])

_REPEAT_SECONDS = 5.0
"""An equal request within this time is a repeat: OpenAI's client retries by itself."""
_OLD_SECRET_SECONDS = 24 * 3600.0
_TESTS, _TESTS_OF_PROJECT = 8, 2
"""Most tests that run at the same time."""
Limit = Annotated[int, Query(ge=1, le=1000)]
EndpointId = Annotated[str, Path(alias="endpoint_id")]
DeliveryId = Annotated[str, Path(alias="delivery_id")]


@router.get("/webhook_event_types", summary="List the types of events", responses=responses())
def event_types() -> WebhookEventTypes:
    return WebhookEventTypes(data=list(EVENT_TYPES))


@router.post("/webhook_endpoints", summary="Create a webhook endpoint", responses=responses(400, 507))
def create(context: Context, body: CreateWebhookEndpoint) -> WebhookEndpointWithSecret:
    """It is told of what happens from now on. The answer has its secret, which is not shown again."""
    _check(context, body.url)
    key, id, salt = _key(context), new_id("webhook"), new_salt()
    made = context.store.webhooks.create_endpoint(
        {**body.model_dump(), "id": id, "salt": salt, "hint": hint_of(key.secret(id, salt))},
        repeat_seconds=_REPEAT_SECONDS,
    )
    return WebhookEndpointWithSecret.with_secret(made, key.secret(made.id, made.salt))


@router.get("/webhook_endpoints", summary="List webhook endpoints", responses=responses(400))
def list_endpoints(context: Context, after: After = None, limit: Limit = 20) -> Page[WebhookEndpointObject]:
    """Newest first."""
    found, more = context.store.webhooks.endpoints(after=after, limit=limit)
    return Page(**page_of([WebhookEndpointObject.of(one) for one in found], more))


@router.get(
    "/webhook_endpoints/{endpoint_id}", summary="Retrieve a webhook endpoint", responses=responses(404)
)
def retrieve(context: Context, id: EndpointId) -> WebhookEndpointObject:
    return WebhookEndpointObject.of(_endpoint(context, id))


@router.post(
    "/webhook_endpoints/{endpoint_id}",
    summary="Change a webhook endpoint",
    responses=responses(400, 404, 507),
)
def update(context: Context, id: EndpointId, body: UpdateWebhookEndpoint) -> WebhookEndpointObject:
    """Deliveries that are pending are sent to its new URL."""
    values = body.model_dump(exclude_none=True)
    if "url" in values:
        _check(context, values["url"])
    changed = context.store.webhooks.update_endpoint(id, **values)
    if changed is None:
        raise _no_endpoint(id)
    return WebhookEndpointObject.of(changed)


@router.delete(
    "/webhook_endpoints/{endpoint_id}", summary="Delete a webhook endpoint", responses=responses(404, 507)
)
def delete(context: Context, id: EndpointId) -> Deleted:
    """Its deliveries are deleted too, and nothing is sent to it any more."""
    if not context.store.webhooks.delete_endpoint(id):
        raise _no_endpoint(id)
    return Deleted(id=id, object="webhook_endpoint.deleted")


@router.post(
    "/webhook_endpoints/{endpoint_id}/rotate_secret",
    summary="Give a webhook endpoint another secret",
    responses=responses(400, 404, 507),
)
def rotate_secret(
    context: Context, id: EndpointId, body: RotateWebhookSecret | None = None
) -> WebhookEndpointWithSecret:
    """The answer has the new secret, which is not shown again. The one before ends now, or signs too for 24 hours."""
    keeps = body is not None and body.keep_old_secret_active_for_24_hours
    key, salt = _key(context), new_salt()
    secret = key.secret(id, salt)
    until = time.time() + _OLD_SECRET_SECONDS if keeps else None
    rotated = context.store.webhooks.rotate(id, salt, hint_of(secret), until)
    if rotated is None:
        raise _no_endpoint(id)
    return WebhookEndpointWithSecret.with_secret(rotated, secret)


@router.post(
    "/webhook_endpoints/{endpoint_id}/test",
    summary="Test a webhook endpoint",
    responses=responses(400, 404, 429),
)
async def test(context: Context, id: EndpointId, body: SendWebhookTest) -> WebhookEndpointTest:
    """Send it an event once, now, about an object `test`; it is not among the deliveries."""
    endpoint = await asyncio.to_thread(_endpoint, context, id)
    with _place_for_test(context):
        sender = await asyncio.to_thread(context.webhook_sender)
        try:
            secrets = (await asyncio.to_thread(_key, context)).secrets_of(endpoint, time.time())
        except KeyLost as error:
            raise InvalidRequest(str(error), code="webhook_secret_lost") from error
        event = WebhookEvent(new_id("evt"), body.event_type, time.time(), {"id": "test"})
        attempt = (await sender.send(endpoint.url, event, secrets)).attempt
    if attempt.status is None:
        raise InvalidRequest(f"There was no answer. {attempt.error}", code="webhook_not_answered")
    return WebhookEndpointTest(
        webhook_endpoint_id=endpoint.id, event_type=event.type, status_code=attempt.status
    )


@router.get("/webhook_deliveries", summary="List deliveries of webhooks", responses=responses(400, 404))
def list_deliveries(
    context: Context,
    webhook_endpoint_id: Annotated[
        Text | None, Query(max_length=64, description="Only those to this endpoint.")
    ] = None,
    state: Annotated[
        DeliveryState | None,
        Query(description="Only those in this state: `dead_letter` for what has failed."),
    ] = None,
    event_type: Annotated[EventType | None, Query(description="Only those of events of this type.")] = None,
    after: After = None,
    limit: Limit = 20,
) -> Page[WebhookDeliveryObject]:
    """Newest first."""
    if webhook_endpoint_id is not None:
        _endpoint(context, webhook_endpoint_id)
    found, more = context.store.webhooks.deliveries(
        endpoint_id=webhook_endpoint_id, state=state, event_type=event_type, after=after, limit=limit
    )
    return Page(**page_of([WebhookDeliveryObject.of(one) for one in found], more))


@router.get("/webhook_deliveries/{delivery_id}", summary="Retrieve a delivery", responses=responses(404))
def retrieve_delivery(context: Context, id: DeliveryId) -> WebhookDeliveryObject:
    found = context.store.webhooks.delivery(id)
    if found is None:
        raise _no_delivery(id)
    return WebhookDeliveryObject.of(found)


@router.post(
    "/webhook_deliveries/{delivery_id}/replay", summary="Send a delivery again", responses=responses(404, 507)
)
def replay(context: Context, id: DeliveryId) -> WebhookDeliveryObject:
    """Send the event now, whatever the delivery's state is, with the same `webhook-id`, and as often as a new one."""
    found = context.store.webhooks.replay(id)
    if found is None:
        raise _no_delivery(id)
    return WebhookDeliveryObject.of(found)


@contextmanager
def _place_for_test(context: ServiceContext) -> Iterator[None]:
    """Raises TooManyRequests where the project, or all together, test as many endpoints as they may. Used in the event
    loop alone."""
    running, project = context.webhook_tests, context.project
    if running[project] >= _TESTS_OF_PROJECT or running.total() >= _TESTS:
        raise TooManyRequests(
            "Several webhook endpoints are being tested: try again soon.", code="too_many_webhook_tests"
        )
    running[project] += 1
    try:
        yield
    finally:
        running[project] -= 1
        if not running[project]:
            del running[project]


def _check(context: ServiceContext, url: str) -> None:
    check_url(url, AllowedHosts(context.settings.webhooks.webhook_host))


def _key(context: ServiceContext) -> SigningKey:
    try:
        return SigningKey.open(context.workspace.webhook_key)
    except ValueError as error:
        raise Internal(f"{error}.") from error


def _endpoint(context: ServiceContext, id: str) -> WebhookEndpoint:
    found = context.store.webhooks.endpoint(id)
    if found is None:
        raise _no_endpoint(id)
    return found


def _no_endpoint(id: str) -> NotFound:
    return NotFound(f"No such webhook endpoint: {quoted(id)}.", param="id", code="webhook_endpoint_not_found")


def _no_delivery(id: str) -> NotFound:
    return NotFound(
        f"No such delivery: {quoted(id)}. Old ones are removed.",
        param="id",
        code="webhook_delivery_not_found",
    )
