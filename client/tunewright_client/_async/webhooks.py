"""Webhooks: `client.webhooks`, and `client.webhooks.deliveries`."""

from __future__ import annotations

from collections.abc import Sequence

from .._core import webhooks
from ..types import (
    Deleted,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEndpointTest,
    WebhookEndpointWithSecret,
)
from .http import AsyncHTTP, AsyncResource
from .pager import AsyncPager


class AsyncWebhooks(AsyncResource):
    """`client.webhooks`: addresses that are told of the ends of jobs and of other events, with OpenAI's names.

    The receiver verifies and reads an event with `openai.OpenAI(webhook_secret=...).webhooks.unwrap`.
    """

    def __init__(self, http: AsyncHTTP) -> None:
        super().__init__(http)
        self.deliveries = AsyncWebhookDeliveries(http)

    async def create(self, name: str, url: str, event_types: Sequence[str]) -> WebhookEndpointWithSecret:
        """Tell an address of events from now on. Its `signing_secret` is not shown again.

        - url: https at a public address, or of a host that the operator allows
        - event_types: such as fine_tuning.job.succeeded; `event_types` lists all

        Raises BadRequestError where the URL may not be called, or an event is not known.
        """
        body = {"name": name, "url": url, "event_types": list(event_types)}
        return await self._http.fetch(webhooks.create_endpoint(body))

    def list(self, after: str | None = None, limit: int | None = None) -> AsyncPager[WebhookEndpoint]:
        """All endpoints, newest first; `limit` is the size of a page."""
        return self._http.page(webhooks.list_endpoints(after, limit))

    async def retrieve(self, webhook_endpoint_id: str) -> WebhookEndpoint:
        """An endpoint, without its secret. Raises NotFoundError."""
        return await self._http.fetch(webhooks.retrieve_endpoint(webhook_endpoint_id))

    async def update(
        self,
        webhook_endpoint_id: str,
        *,
        name: str | None = None,
        url: str | None = None,
        event_types: Sequence[str] | None = None,
    ) -> WebhookEndpoint:
        """Change what is given. Deliveries that are pending are sent to the new URL."""
        types = list(event_types) if event_types is not None else None
        body = {"name": name, "url": url, "event_types": types}
        return await self._http.fetch(webhooks.update_endpoint(webhook_endpoint_id, body))

    async def delete(self, webhook_endpoint_id: str) -> Deleted:
        """Delete an endpoint with its deliveries."""
        return await self._http.fetch(webhooks.delete_endpoint(webhook_endpoint_id))

    async def rotate_secret(
        self, webhook_endpoint_id: str, *, keep_old_secret_active_for_24_hours: bool = False
    ) -> WebhookEndpointWithSecret:
        """Give an endpoint another secret, which is not shown again. The one before ends now, or signs too for 24
        hours."""
        call = webhooks.rotate_secret(webhook_endpoint_id, keep_old_secret_active_for_24_hours)
        return await self._http.fetch(call)

    async def test(self, webhook_endpoint_id: str, *, event_type: str) -> WebhookEndpointTest:
        """Send an event about an object `test` once, now. Raises BadRequestError where there is no answer."""
        return await self._http.fetch(webhooks.test_endpoint(webhook_endpoint_id, event_type))

    async def event_types(self) -> Sequence[str]:
        """The types of all events."""
        return await self._http.fetch(webhooks.event_types())


class AsyncWebhookDeliveries(AsyncResource):
    """`client.webhooks.deliveries`: what was sent to endpoints, and what has failed."""

    def list(
        self,
        *,
        webhook_endpoint_id: str | None = None,
        state: str | None = None,
        event_type: str | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> AsyncPager[WebhookDelivery]:
        """Deliveries, newest first; with state="dead_letter" those of which all attempts have failed."""
        params = {
            "webhook_endpoint_id": webhook_endpoint_id,
            "state": state,
            "event_type": event_type,
            "after": after,
            "limit": limit,
        }
        return self._http.page(webhooks.list_deliveries(params))

    async def retrieve(self, delivery_id: str) -> WebhookDelivery:
        """A delivery with its attempts. Raises NotFoundError."""
        return await self._http.fetch(webhooks.retrieve_delivery(delivery_id))

    async def replay(self, delivery_id: str) -> WebhookDelivery:
        """Send the event again, now, with the same `webhook-id`."""
        return await self._http.fetch(webhooks.replay_delivery(delivery_id))
