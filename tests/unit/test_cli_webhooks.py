"""`tunewright webhooks` against the service that only pretends: what is sent, what is printed, and the exit code."""

from __future__ import annotations

import json
from typing import Any

import pytest
import test_cli
from test_cli import FakeService, Run, page

_environment, run, service = test_cli._environment, test_cli.run, test_cli.service  # fixtures

ENDPOINTS, ONE = "/v1/webhook_endpoints", "/v1/webhook_endpoints/webhook-1"
DELIVERIES = "/v1/webhook_deliveries"
DONE, SECRET = "fine_tuning.job.succeeded", "whsec_aaaabbbb="
ENDPOINT: dict[str, Any] = {
    "id": "webhook-1", "name": "ci", "url": "https://ci.example.com", "event_types": [DONE], "created_at": 1,
    "updated_at": 1, "signing_secret_hint": "whsec_...bbbb=",
}  # fmt: skip


def delivery(number: int, state: str = "dead_letter") -> dict[str, Any]:
    event = {"id": "evt-1", "created_at": 1, "type": DONE, "data": {"id": f"ftjob-{number}"}}
    attempt = {"created_at": 1, "seconds": 0.5, "status_code": 500, "error": "It answered with 500."}
    return {
        "id": f"delivery-{number}", "webhook_endpoint_id": "webhook-1", "event": event, "state": state,
        "created_at": 1, "ended_at": 9, "next_attempt_at": None, "attempts": [attempt],
    }  # fmt: skip


@pytest.fixture
def webhooks(service: FakeService) -> FakeService:
    """The service with one endpoint and two dead letters."""
    shown = {**ENDPOINT, "signing_secret": SECRET}
    service.replies = {
        ("POST", ENDPOINTS): (200, shown),
        ("GET", ENDPOINTS): (200, page([ENDPOINT])),
        ("GET", ONE): (200, ENDPOINT),
        ("POST", ONE): (200, {**ENDPOINT, "name": "new"}),
        ("DELETE", ONE): (200, {"id": "webhook-1", "object": "webhook_endpoint.deleted"}),
        ("POST", f"{ONE}/rotate_secret"): (200, shown),
        ("POST", f"{ONE}/test"): (200, {"webhook_endpoint_id": "webhook-1", "status_code": 503}),
        ("GET", "/v1/webhook_event_types"): (200, {"object": "list", "data": [DONE, "export.failed"]}),
        ("GET", DELIVERIES): (200, page([delivery(1), delivery(2)])),
        ("GET", f"{DELIVERIES}/delivery-1"): (200, delivery(1)),
        **{("POST", f"{DELIVERIES}/delivery-{n}/replay"): (200, delivery(n, "pending")) for n in (1, 2)},
    }
    return service


@pytest.mark.parametrize(
    "command",
    ["create", "events", "list", "show", "update", "rotate-secret", "test", "delete", "deliveries", "delivery",
     "replay"],
)  # fmt: skip
def test_help_is_complete(run: Run, command: str) -> None:
    code, out, err = run("webhooks", command, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: tunewright webhooks {command}" in out
    assert f"\n    tunewright webhooks {command}" in out


@pytest.mark.parametrize(
    "argv",
    [
        ["create"], ["create", "https://a"], ["create", "https://a", "--event", DONE, "--all-events"], ["delete"],
        ["deliveries", "--state", "lost"], ["replay"], ["replay", "delivery-1", "--dead-letters"],
        ["replay", "delivery-1", "--endpoint", "webhook-1"],
    ],
)  # fmt: skip
def test_wrong_usage_is_2_and_nothing_is_sent(run: Run, webhooks: FakeService, argv: list[str]) -> None:
    code, out, err = run("webhooks", *argv)
    assert (code, out) == (2, "")
    assert err
    assert webhooks.requests == []


def test_an_endpoint_is_created_and_its_secret_is_printed(run: Run, webhooks: FakeService) -> None:
    code, out, err = run("webhooks", "create", "https://ci.example.com", "--event", DONE)
    assert (code, out) == (0, f"id\twebhook-1\nurl\thttps://ci.example.com\nsecret\t{SECRET}\n")
    assert "not shown again" in err
    assert webhooks.body("POST", ENDPOINTS) == {
        "name": "https://ci.example.com",
        "url": "https://ci.example.com",
        "event_types": [DONE],
    }
    run("webhooks", "create", "https://ci.example.com", "--all-events", "--name", "ci")
    assert webhooks.body("POST", ENDPOINTS)["event_types"] == [DONE, "export.failed"]
    assert json.loads(run("webhooks", "rotate-secret", "webhook-1", "--keep-old", "--json")[1])[
        "signing_secret"
    ]
    assert webhooks.body("POST", f"{ONE}/rotate_secret") == {"keep_old_secret_active_for_24_hours": True}


def test_endpoints_are_shown_changed_tested_and_deleted(run: Run, webhooks: FakeService) -> None:
    assert run("webhooks", "events") == (0, f"{DONE}\nexport.failed\n", "")
    assert "webhook-1\tci\thttps://ci.example.com\t1\t" in run("webhooks", "list")[1]
    shown = run("webhooks", "show", "webhook-1")[1]
    assert f"event\t{DONE}\n" in shown
    assert SECRET not in shown
    assert "name\tnew\n" in run("webhooks", "update", "webhook-1", "--name", "new")[1]
    assert webhooks.body("POST", ONE) == {"name": "new"}
    run("webhooks", "update", "webhook-1", "--endpoint-url", "https://new.example.com", "--event", DONE)
    assert webhooks.body("POST", ONE) == {"url": "https://new.example.com", "event_types": [DONE]}
    assert run("webhooks", "test", "webhook-1") == (1, "webhook-1 answered with 503\n", "")
    assert run("webhooks", "delete", "webhook-1") == (0, "webhook-1 deleted\n", "")


def test_dead_letters_are_listed_and_replayed(run: Run, webhooks: FakeService) -> None:
    code, out, err = run("webhooks", "deliveries", "--state", "dead_letter", "--endpoint", "webhook-1")
    assert (code, err) == (0, "")
    assert f"delivery-1\t{DONE}\tftjob-1\tdead_letter\t1\t" in out
    assert out.count("It answered with 500.") == 2
    assert "webhook-id\tevt-1\n" in run("webhooks", "delivery", "delivery-1")[1]
    assert run("webhooks", "replay", "delivery-2") == (0, "delivery-2 pending\n", "")
    both = "delivery-1 pending\ndelivery-2 pending\n"
    assert run("webhooks", "replay", "--dead-letters", "--endpoint", "webhook-1") == (0, both, "")
