"""Webhooks: endpoints and deliveries, each by its route."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_server import FakeServer, ok, refuse
from samples import page

import tunewright_client as tw
from tunewright_client import AsyncTunewright, Tunewright, WebhookEndpoint

PATH, ONE = "/v1/webhook_endpoints", "/v1/webhook_endpoints/webhook-1"
DELIVERIES, DELIVERY = "/v1/webhook_deliveries", "/v1/webhook_deliveries/delivery-1"
DONE = "fine_tuning.job.succeeded"
ENDPOINT: dict[str, Any] = {
    "id": "webhook-1", "object": "webhook_endpoint", "name": "ci", "url": "https://ci.example.com",
    "event_types": [DONE], "created_at": 1, "updated_at": 2, "signing_secret_hint": "whsec_...bbbb=",
}  # fmt: skip
SHOWN: dict[str, Any] = {
    "id": "delivery-1", "object": "webhook_delivery", "webhook_endpoint_id": "webhook-1",
    "event": {"id": "evt-1", "object": "event", "created_at": 1, "type": DONE, "data": {"id": "ftjob-1"}},
    "state": "dead_letter", "created_at": 1, "ended_at": 9, "next_attempt_at": None,
    "attempts": [{"created_at": 1, "seconds": 0.5, "status_code": 500, "error": "It answered with 500."}],
}  # fmt: skip


def test_every_method_of_endpoints_uses_its_route(server: FakeServer, client: Tunewright) -> None:
    secret = {**ENDPOINT, "signing_secret": "whsec_aaaabbbb="}
    server.on("POST", PATH, ok(secret))
    server.on("GET", PATH, ok(page([ENDPOINT])))
    server.on("GET", ONE, ok(ENDPOINT))
    server.on("POST", ONE, ok({**ENDPOINT, "name": "new"}))
    server.on("DELETE", ONE, ok({"id": "webhook-1", "object": "webhook_endpoint.deleted", "deleted": True}))
    server.on("POST", f"{ONE}/rotate_secret", ok(secret))
    server.on("POST", f"{ONE}/test", ok({"webhook_endpoint_id": "webhook-1", "status_code": 503}))
    server.on("GET", "/v1/webhook_event_types", ok({"object": "list", "data": [DONE]}))
    made = client.webhooks.create("ci", "https://ci.example.com", (DONE,))
    assert server.requests[-1].json == {"name": "ci", "url": "https://ci.example.com", "event_types": [DONE]}
    assert made.signing_secret == "whsec_aaaabbbb="
    assert "whsec_aaaa" not in repr(made), "a record that is logged shows no secret"
    assert [one.id for one in client.webhooks.list(limit=5)] == ["webhook-1"]
    assert isinstance(client.webhooks.retrieve("webhook-1"), WebhookEndpoint)
    assert client.webhooks.update("webhook-1", name="new").name == "new"
    assert server.requests[-1].json == {"name": "new"}
    assert client.webhooks.rotate_secret("webhook-1").signing_secret
    assert server.requests[-1].json == {"keep_old_secret_active_for_24_hours": False}
    assert client.webhooks.test("webhook-1", event_type=DONE).status_code == 503
    assert server.requests[-1].json == {"event_type": DONE}
    assert client.webhooks.event_types() == [DONE]
    assert client.webhooks.delete("webhook-1").deleted
    with pytest.raises(ValueError, match="empty"):
        client.webhooks.delete("")
    server.on("GET", ONE, refuse(404))
    with pytest.raises(tw.NotFoundError):
        client.webhooks.retrieve("webhook-1")


def test_deliveries_are_listed_and_replayed(server: FakeServer) -> None:
    server.on("GET", DELIVERIES, ok(page([SHOWN])))
    server.on("GET", DELIVERY, ok(SHOWN))
    server.on("POST", f"{DELIVERY}/replay", ok({**SHOWN, "state": "pending"}))

    async def run() -> None:
        async with AsyncTunewright(server.url) as client:
            found = client.webhooks.deliveries
            listed = [one async for one in found.list(state="dead_letter", webhook_endpoint_id="webhook-1")]
            assert [one.event.data["id"] for one in listed] == ["ftjob-1"]
            assert server.requests[-1].query == {"state": "dead_letter", "webhook_endpoint_id": "webhook-1"}
            assert (await found.retrieve("delivery-1")).attempts[0].status_code == 500
            assert (await found.replay("delivery-1")).state == "pending"

    asyncio.run(run())
