"""Webhooks by the whole service: an event reaches a receiver that fails, and one whose sender is killed, once."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from tests.engine.conftest import Service, wait_until

from kills import tree
from receivers import Receiver
from tunewright_client import Tunewright, WebhookEndpointWithSecret

DONE = "cleaning.succeeded"


def senders(service: Service) -> list[int]:
    """The ids of the processes that deliver."""
    return [pid for pid, (_, line) in tree(service.process.pid).items() if line == "tunewright: webhooks"]


def schedulers(service: Service) -> list[int]:
    return [pid for pid, (_, line) in tree(service.process.pid).items() if line == "tunewright: scheduler"]


@pytest.fixture
def receiver(client: Tunewright) -> Iterator[Receiver]:
    with Receiver() as running:
        yield running
    for endpoint in client.webhooks.list():
        client.webhooks.delete(endpoint.id)


def listen(client: Tunewright, receiver: Receiver, *events: str) -> WebhookEndpointWithSecret:
    return client.webhooks.create("test", receiver.url, events)


def clean(client: Tunewright, mark: str) -> str:
    rows = [{"prompt": f"{mark}{number} + 1 =", "completion": "more"} for number in range(5)]
    file = client.files.upload(b"".join(json.dumps(row).encode() + b"\n" for row in rows), filename="a.jsonl")
    return client.cleanings.create(file.id, ["html"]).wait(timeout=120).id


def wait_delivered(client: Tunewright, count: int = 1) -> Any:
    """The deliveries, when so many were taken."""
    wait_until(
        lambda: len(client.webhooks.deliveries.list(state="delivered").data) == count, 120, "the delivery"
    )
    return client.webhooks.deliveries.list(state="delivered").data


def test_a_receiver_that_fails_five_times_gets_an_event_of_a_job_once(
    service: Service, client: Tunewright, receiver: Receiver
) -> None:
    receiver.answer = lambda number: 503 if number < 5 else 200
    endpoint = listen(client, receiver, DONE, "cleaning.failed")
    job = clean(client, "a")
    (delivery,) = wait_delivered(client)
    openai = OpenAI(api_key="x", webhook_secret=endpoint.signing_secret)
    events: list[Any] = [openai.webhooks.unwrap(got.body, got.headers) for got in receiver.received]
    assert [one.status_code for one in delivery.attempts] == [503] * 5 + [200]
    assert {(event.id, event.type) for event in events} == {(delivery.event.id, DONE)}
    assert json.loads(receiver.received[0].body)["data"] == {"id": job}
    assert {got.id for got in receiver.received} == {delivery.event.id}
    log = (service.data_dir / "run" / "webhooks.log").read_text() + service.log.read_text()
    assert "answered with 503" in log
    assert endpoint.signing_secret not in log


def test_a_kill_in_the_middle_of_an_attempt_loses_nothing_and_changes_no_id(
    service: Service, client: Tunewright, receiver: Receiver
) -> None:
    over = threading.Event()

    def answer(number: int) -> int:
        if number < 2:
            over.wait(120)
        return 200

    receiver.answer = answer
    listen(client, receiver, DONE)
    job = clean(client, "b")
    wait_until(lambda: len(receiver.received) == 1, 60, "the first attempt")
    (first,) = senders(service)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(receiver.received) == 2, 60, "the second attempt")
    (second,) = senders(service)
    assert second != first
    for pid in [*schedulers(service), second]:
        os.kill(pid, signal.SIGKILL)
    (delivery,) = wait_delivered(client)
    over.set()
    assert {got.id for got in receiver.received} == {delivery.event.id}
    assert delivery.event.data == {"id": job}
    cut_off = "The service was stopped or killed before the answer."
    assert [one.error for one in delivery.attempts] == [cut_off, cut_off, None]


def test_without_deliveries_no_process_waits_for_them(service: Service, client: Tunewright) -> None:
    wait_until(lambda: senders(service) == [], 120, "its end")
