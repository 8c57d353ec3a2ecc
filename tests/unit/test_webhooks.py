"""Webhooks: events in the transaction of their change, signatures, where they may be sent, deliveries, and the API."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from sqlalchemy import Connection, delete, func, select, update
from starlette.testclient import TestClient

from receivers import Receiver
from rows import PRODUCT, create_job, engine_info
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.config import Settings, WebhookOptions
from tunewright.errors import DatabaseUnavailable, InvalidRequest, StorageFull
from tunewright.jobs.kinds import JobError
from tunewright.kinds.batch.models import INPUT_FILE, BatchRequest, BatchResult, Ending
from tunewright.registry.aliases import AliasTarget
from tunewright.registry.workspace import Workspace
from tunewright.store import job_rows, outbox
from tunewright.store import webhooks as webhook_store
from tunewright.store.records import JobInput, NewJob
from tunewright.store.states import DeliveryState, JobState
from tunewright.store.store import Store
from tunewright.store.tables import jobs, webhook_endpoints, webhook_events
from tunewright.store.webhook_records import Attempt, Delivery, WebhookEndpoint, WebhookEvent
from tunewright.store.webhooks import PLACES, PLACES_AT_ENDPOINT, PLACES_OF_LONE_PROJECT
from tunewright.webhooks import deliverer
from tunewright.webhooks.addresses import AddressRefused, AllowedHosts, check_url, is_public, open_socket
from tunewright.webhooks.deliverer import Deliverer, backoff
from tunewright.webhooks.sending import Sender, body_of
from tunewright.webhooks.signing import KeyLost, SigningKey, hint_of, new_salt, signed_headers

DONE = "fine_tuning.job.succeeded"
OPENAI_2 = Path(sys.prefix) / "openai-2"
EVENT = WebhookEvent("evt-1", DONE, 1795337600.5, {"id": "ftjob-1"})
LOOPBACK = ["127.0.0.1"]


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.open(tmp_path / "webhooks.key")


def add(store: Store, url: str = "https://a.example", key: SigningKey | None = None, **values: Any) -> str:
    id, salt = f"webhook-{values.get('name', 'a')}", new_salt()
    hint = hint_of(key.secret(id, salt)) if key else "hint"
    row = {
        "id": id,
        "name": "a",
        "url": url,
        "event_types": list(outbox.EVENT_TYPES),
        "salt": salt,
        "hint": hint,
    }
    return store.webhooks.create_endpoint({**row, **values}).id


def tell(store: Store, id: str = "ftjob-1", type: str = DONE, project: str = "default") -> None:
    with store.database.begin() as connection:
        outbox.tell(connection, type, id, project)


def told(store: Store) -> list[tuple[str, dict[str, Any]]]:
    """Type and data of each delivery, oldest first."""
    return [(one.event.type, one.event.data) for one in reversed(store.webhooks.deliveries()[0])]


def only(store: Store) -> Delivery:
    (found,) = store.webhooks.deliveries()[0]
    return found


# events


@pytest.mark.each_database
@pytest.mark.parametrize(
    ("state", "end"),
    [
        (JobState.SUCCEEDED, lambda jobs, id: jobs.succeed(id, _result())),
        (JobState.FAILED, lambda jobs, id: jobs.fail(id, JobError(code="x", message="why"))),
        (JobState.CANCELLED, lambda jobs, id: jobs.cancel(id)),
    ],
)
def test_the_end_of_a_job_is_told_once(store: Store, state: JobState, end: Callable[..., Any]) -> None:
    add(store)
    job = create_job(store, state=JobState.RUNNING)
    end(store.jobs, job.id)
    store.jobs.fail(job.id, JobError(code="x", message="it has ended already"))
    assert told(store) == [(f"fine_tuning.job.{state.value}", {"id": job.id})]


@pytest.mark.parametrize("ending", list(Ending))
def test_the_end_of_a_batch_is_told_in_the_words_of_openai(store: Store, ending: Ending) -> None:
    add(store)
    request = BatchRequest(endpoint="/v1/completions", completion_window="24h", expires_at=2e9)
    job = store.jobs.create(NewJob("batch", "", request, 0, (JobInput(INPUT_FILE, file_id="file-1"),)))
    with store.database.begin() as connection:
        for state in (JobState.QUEUED, JobState.RUNNING):
            connection.execute(update(jobs).where(jobs.c.id == job.id).values(state=state))
    store.jobs.succeed(job.id, BatchResult(ending=ending))
    assert told(store) == [(f"batch.{ending.value}", {"id": job.id})]


def _result() -> Any:
    from tunewright.kinds.fine_tuning.models import FineTuningResult

    return FineTuningResult(trained_tokens=1)


@pytest.mark.each_database
def test_nothing_is_told_of_a_change_that_is_rolled_back(store: Store) -> None:
    add(store)
    job = create_job(store, state=JobState.RUNNING)

    def cut_off() -> None:
        with store.database.begin() as connection:
            job_rows.fail(connection, job.id, JobError(code="x", message="why"))
            raise RuntimeError("the process is killed before the commit")

    with pytest.raises(RuntimeError):
        cut_off()
    assert told(store) == []
    assert [job.state for job in store.jobs.active()] == [JobState.RUNNING]


@pytest.mark.each_database
def test_only_what_an_endpoint_wants_is_written(store: Store) -> None:
    tell(store)
    assert add(store, name="x", event_types=["export.failed"])
    assert add(store, name="other", project="other")
    tell(store)
    with store.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(webhook_events)) == 0
    add(store, name="b"), add(store, name="c")
    tell(store)
    first, second = store.webhooks.deliveries()[0]
    assert first.event == second.event, "both get the same event"
    assert {first.endpoint_id, second.endpoint_id} == {"webhook-b", "webhook-c"}
    assert (first.state, first.project) == (DeliveryState.PENDING, "default")


@pytest.mark.each_database
def test_a_deployment_tells_that_it_is_ready_once_that_it_failed_and_its_end(store: Store) -> None:
    add(store)
    model = "ft:tiny:full:1"
    made = store.deployments.create(model, {}, lambda _: {"device": "cpu"})
    store.engines.starting(model, "/tmp/s", engine_info(deployment=made.id))
    store.deployments.is_ready(made.id, engine_info(max_model_len=7))
    store.deployments.is_ready(made.id, engine_info(max_model_len=7))
    store.deployments.fail(made.id, model, "why")
    store.deployments.remove(made.id)
    store.deployments.remove(made.id)
    data = {"id": made.id, "model": model}
    assert told(store) == [(f"deployment.{what}", data) for what in ("ready", "failed", "deleted")]


@pytest.mark.each_database
def test_a_quarantine_is_told(store: Store) -> None:
    add(store)
    source = {"lineage": {}, "source": "upload", "id": "adapter-1", "job_id": None, "state": "checking"}
    store.models.register({**PRODUCT, **source})
    event = {"level": "warn", "type": "message", "message": "m", "data": None}
    failure = JobError(code="parity_failed", message="No parity.")
    for _ in range(2):
        store.checks.record("adapter-1", {"verdict": "fail"}, failure=failure, event=event)
    assert told(store) == [("adapter.quarantined", {"id": "adapter-1", "model": PRODUCT["name"]})]


@pytest.mark.each_database
def test_a_rollback_is_told_and_a_new_target_is_not(store: Store) -> None:
    add(store)
    store.engines.declare(["tiny", "other"])
    for model in ("tiny", "other"):
        store.aliases.put("prod", [AliasTarget(model, 1.0)])
    store.aliases.rollback("prod")
    assert told(store) == [("alias.rolled_back", {"id": "prod", "version": 3, "restored_version": 1})]


# what is stored


@pytest.mark.each_database
def test_an_equal_request_within_seconds_makes_one_endpoint(store: Store) -> None:
    values = {"name": "a", "url": "https://a", "event_types": [DONE], "salt": "s", "hint": "h"}
    first = store.webhooks.create_endpoint({"id": "webhook-1", **values}, repeat_seconds=60)
    assert store.webhooks.create_endpoint({"id": "webhook-2", **values}, repeat_seconds=60) == first
    values["event_types"] = ["export.failed"]
    assert store.webhooks.create_endpoint({"id": "webhook-3", **values}, repeat_seconds=60).id == "webhook-3"


def test_endpoints_are_limited_and_each_project_has_its_own(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.store.webhooks.MOST_ENDPOINTS", 2)
    for number in range(2):
        add(store, name=str(number))
    with pytest.raises(InvalidRequest, match="2 webhook endpoints"):
        add(store, name="more")
    add(store, name="more", project="other")


@pytest.mark.each_database
def test_a_claim_counts_and_a_kill_in_the_middle_is_made_good(store: Store) -> None:
    add(store)
    tell(store)
    assert store.webhooks.next_due() is not None
    ((claimed, _),) = store.webhooks.claim()
    assert claimed.tries == 1
    assert store.webhooks.claim() == [], "one attempt at a time"
    assert store.webhooks.next_due() == 0.0
    assert store.webhooks.replay(claimed.id) == claimed, "it is being sent"
    assert store.webhooks.recover(most_tries=2) == 1
    ((again, _),) = store.webhooks.claim()
    assert (again.tries, again.event) == (2, claimed.event)
    assert [one.error for one in again.attempts] == ["The service was stopped or killed before the answer."]
    store.webhooks.recover(most_tries=2)
    assert only(store).state is DeliveryState.DEAD_LETTER, "what kills the process is not sent for ever"
    assert (store.webhooks.recover(2), store.webhooks.next_due()) == (0, None)


@pytest.mark.each_database
def test_a_replay_begins_anew_with_the_same_event(store: Store) -> None:
    add(store)
    tell(store)
    ((claimed, _),) = store.webhooks.claim()
    store.webhooks.ended(claimed, Attempt(1.0, 0.5, 500, "no"), None)
    dead, _ = store.webhooks.deliveries(state=DeliveryState.DEAD_LETTER)
    assert [one.id for one in dead] == [claimed.id]
    replayed = store.webhooks.replay(claimed.id)
    assert replayed is not None
    assert (replayed.state, replayed.tries, replayed.ended_at) == (DeliveryState.PENDING, 0, None)
    ((again, _),) = store.webhooks.claim()
    assert again.event == claimed.event
    assert len(again.attempts) == 1, "what was tried before stays to be seen"
    assert store.webhooks.replay("delivery-x") is None


@pytest.mark.each_database
def test_an_endpoint_that_is_full_lets_others_pass(store: Store) -> None:
    add(store, name="slow"), add(store, name="quick")
    slow = store.webhooks.endpoint("webhook-slow")
    assert slow is not None
    tell(store)
    ((_, endpoint),) = store.webhooks.claim([slow] * PLACES_AT_ENDPOINT)
    assert endpoint.id == "webhook-quick"


@pytest.mark.each_database
def test_a_project_with_many_endpoints_leaves_places_for_the_others(store: Store) -> None:
    for number in range(10):
        add(store, name=str(number), project="many")
    add(store)
    for number in range(PLACES_AT_ENDPOINT + 1):
        tell(store, f"ftjob-{number}", project="many")
    tell(store)
    claimed = [endpoint for _, endpoint in store.webhooks.claim()]
    assert Counter(one.project for one in claimed) == {"many": PLACES_OF_LONE_PROJECT, "default": 1}
    assert max(Counter(one.id for one in claimed).values()) <= PLACES_AT_ENDPOINT
    for number in range(3):
        tell(store, f"ftjob-late-{number}")
    assert [one.project for _, one in store.webhooks.claim(claimed)] == ["default"] * 3
    assert len(claimed) + 3 < PLACES, "there are others for the next one"
    # as soon as a place is free, it is for who has the fewest
    assert store.webhooks.claim(claimed) == []
    tell(store, "ftjob-last")
    full = [*claimed, *claimed[: PLACES - len(claimed) - 1]]
    assert [one.project for _, one in store.webhooks.claim(full)] == ["default"]


@pytest.mark.each_database
def test_deleting_an_endpoint_in_the_middle_of_an_attempt_is_no_error(store: Store) -> None:
    add(store)
    tell(store)
    ((claimed, endpoint),) = store.webhooks.claim()
    assert store.webhooks.delete_endpoint(endpoint.id)
    store.webhooks.ended(claimed, Attempt(1.0, 0.5, 200, None), None)
    assert store.webhooks.deliveries()[0] == []


@pytest.mark.each_database
def test_old_deliveries_are_pruned_and_pending_ones_are_not(store: Store) -> None:
    add(store)
    tell(store, "old"), tell(store, "pending")
    claimed = next(one for one, _ in store.webhooks.claim() if one.event.data["id"] == "old")
    store.webhooks.ended(claimed, Attempt(100.0, 0.0, 500, "no"), None)
    assert store.webhooks.prune(99.0) == 0
    assert store.webhooks.prune(101.0) == 1
    assert told(store) == [(DONE, {"id": "pending"})]
    with store.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(webhook_events)) == 2, "it is new"
    store.webhooks.prune(time.time() + 1)
    with store.database.read() as connection:
        assert connection.scalars(select(webhook_events.c.data)).all() == [{"id": "pending"}]


# secrets and signatures


def test_the_key_is_made_once_and_its_owner_alone_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "webhooks.key"
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(SigningKey.open(path).secret("a", "b")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["webhooks.key"]
    path.write_text("short\n")
    with pytest.raises(ValueError, match="has no key of webhooks"):
        SigningKey.open(path)


def test_no_secret_is_in_the_database(key: SigningKey, store: Store, data: Workspace) -> None:
    add(store, key=key)
    endpoint = store.webhooks.endpoint("webhook-a")
    assert endpoint is not None
    (secret,) = key.secrets_of(endpoint, time.time())
    store.close()
    content = b"".join(path.read_bytes() for path in data.path.glob("tunewright.db*"))
    assert endpoint.salt.encode() in content
    assert secret[10:-6].encode() not in content


def test_another_key_is_noticed(key: SigningKey, store: Store, tmp_path: Path) -> None:
    add(store, key=key)
    endpoint = store.webhooks.endpoint("webhook-a")
    assert endpoint is not None
    with pytest.raises(KeyLost, match="rotate the secret"):
        SigningKey.open(tmp_path / "other.key").secrets_of(endpoint, 0.0)


def test_the_old_secret_signs_too_until_its_time(key: SigningKey, store: Store) -> None:
    add(store, key=key)
    old = store.webhooks.endpoint("webhook-a")
    assert old is not None
    salt = new_salt()
    rotated = store.webhooks.rotate(old.id, salt, hint_of(key.secret(old.id, salt)), old_until=1000.0)
    assert rotated is not None
    before, after = key.secrets_of(rotated, 999.0), key.secrets_of(rotated, 1000.0)
    assert before == [key.secret(old.id, salt), *key.secrets_of(old, 0.0)]
    assert after == before[:1]
    body = body_of(EVENT)
    headers = signed_headers(EVENT.id, int(time.time()), body, before)
    for secret in before:
        OpenAI(api_key="x", webhook_secret=secret).webhooks.unwrap(body, headers)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        OpenAI(api_key="x", webhook_secret=key.secret("webhook-b", salt)).webhooks.unwrap(body, headers)


def fine_tuning_events(secret: str, now: float) -> list[tuple[str, dict[str, str]]]:
    """Body and headers of an event for each end of a job."""
    found = []
    for end in ("succeeded", "failed", "cancelled"):
        event = WebhookEvent("evt-1", f"fine_tuning.job.{end}", 1795337600.5, {"id": "ftjob-1"})
        body = body_of(event)
        found.append((body.decode(), signed_headers(event.id, int(now), body, [secret])))
    return found


def test_the_stock_client_unwraps_events_of_fine_tuning_jobs(key: SigningKey) -> None:
    secret = key.secret("webhook-a", "salt")
    client = OpenAI(api_key="x", webhook_secret=secret)
    events: list[Any] = [client.webhooks.unwrap(*one) for one in fine_tuning_events(secret, time.time())]
    assert [type(event).__name__ for event in events] == [
        f"FineTuningJob{end}WebhookEvent" for end in ("Succeeded", "Failed", "Cancelled")
    ]
    assert {(event.id, event.data.id, event.created_at, event.object) for event in events} == {
        ("evt-1", "ftjob-1", 1795337600, "event")
    }


def test_so_does_its_older_version(key: SigningKey) -> None:
    assert OPENAI_2.is_dir(), "openai 2.x is missing: run `make setup`"
    secret = key.secret("webhook-a", "salt")
    program = (
        "import json, sys, time, openai\n"
        "secret, cases = json.load(sys.stdin)\n"
        "time.time = lambda: 1000.0\n"  # however long it took to get here
        "client = openai.OpenAI(api_key='x', webhook_secret=secret)\n"
        "for body, headers in cases:\n"
        "    event = client.webhooks.unwrap(body, headers)\n"
        "    print(openai.__version__.split('.')[0], type(event).__name__, event.type, event.data.id)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps([secret, fine_tuning_events(secret, 1000.0)]),
        env={"PYTHONPATH": str(OPENAI_2)}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        f"2 FineTuningJob{end.title()}WebhookEvent fine_tuning.job.{end} ftjob-1"
        for end in ("succeeded", "failed", "cancelled")
    ]


# where events may be sent


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.com/x", "is not https"),
        ("https://127.0.0.1/x", "is not a public address"),
        ("https://[::1]/x", "is not a public address"),
        ("https://[::ffff:10.0.0.1]/x", "is not a public address"),
        ("https://169.254.169.254/latest/meta-data", "is not a public address"),
        ("https://localhost/x", "is not a public address"),
        ("https://a.localhost/x", "is not a public address"),
        ("https://localhost./x", "is not a public address"),
        ("https://127.0.0.1./x", "is not a public address"),
        ("https://127.1./x", "four numbers"),
        ("https://example.com%00.a/x", "letters, digits"),
        ("https://[v1.a]/x", "letters, digits"),
        ("https://user:pass@example.com/x", "a user, a password"),
        ("https://example.com/x#part", "a fragment"),
        ("https://example.com:99999/x", "is not the URL"),
        ("https://example.com:0/x", "is not the URL"),
        ("https:///x", "is not the URL"),
        ("https://2130706433/x", "four numbers"),
        ("https://0x7f000001/x", "four numbers"),
        ("https://0x7f.1/x", "four numbers"),
        ("https://127.1/x", "four numbers"),
        ("ftp://example.com/x", "is not the URL"),
        ("file:///etc/passwd", "is not the URL"),
        ("https://exa mple.com/", "without spaces"),
        ("https://example.com\\@127.0.0.1/", "without spaces"),
        ("https://ex\u00e4mple.com/", "ASCII"),
        ("https://example.com/" + "a" * 2048, "2048 characters"),
        ("example.com", "is not the URL"),
    ],
)
def test_a_url_that_may_not_be_called_is_refused(url: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as refused:
        check_url(url, AllowedHosts(["allowed.example"]))
    assert (refused.value.param, refused.value.code) == ("url", "webhook_url_refused")


def test_what_the_operator_allows_may_be_called() -> None:
    allowed = AllowedHosts(["Hooks.internal", "[::1]"])
    for url in (
        "http://hooks.internal:8080/x",
        "https://HOOKS.internal",
        "http://[::1]/x",
        "https://example.com/x",
    ):
        check_url(url, allowed)
    with pytest.raises(InvalidRequest):
        check_url("http://other.internal/x", allowed)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("::ffff:8.8.8.8", True), ("64:ff9b::808:808", True),
        ("2002:808:808::1", True),
        ("127.0.0.1", False), ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.1.1", False),
        ("169.254.169.254", False), ("100.64.0.1", False), ("0.0.0.0", False), ("255.255.255.255", False),
        ("224.0.0.1", False), ("240.0.0.1", False), ("192.0.2.1", False), ("198.18.0.1", False),
        ("::1", False), ("::", False), ("fe80::1", False), ("fc00::1", False), ("fec0::1", False), ("ff02::1", False),
        ("::ffff:127.0.0.1", False), ("64:ff9b::7f00:1", False), ("2002:7f00:1::1", False), ("2001::1", False),
    ],
)  # fmt: skip
def test_an_address_is_public_or_not(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


def test_the_address_that_is_checked_is_the_one_of_the_socket() -> None:
    inside = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 443))
    with pytest.raises(AddressRefused, match=r"a\.example has the address 10\.0\.0\.1, which is not public"):
        open_socket("a.example", AllowedHosts([]), inside)
    open_socket("a.example", AllowedHosts(["a.example"]), inside).close()
    scoped = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1%lo", 443, 0, 1))
    with pytest.raises(AddressRefused):
        open_socket("a.example", AllowedHosts([]), scoped)


def send(url: str, hosts: list[str] | None = None, timeout: float = 60.0) -> Attempt:
    sender = Sender(LOOPBACK if hosts is None else hosts, timeout)
    return asyncio.run(sender.send(url, EVENT, ["whsec_" + "A" * 44])).attempt


@contextmanager
def resolving(monkeypatch: pytest.MonkeyPatch, *answers: str) -> Iterator[list[str]]:
    """DNS that answers with these addresses, one for each question, and then always with the last."""
    left, asked = list(answers), []

    def lookup(host: str, port: Any, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        address = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port)))]

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", lookup)
        yield asked


def test_a_name_of_an_address_inside_is_not_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as receiver, resolving(monkeypatch, "127.0.0.1"):
        attempt = send(f"https://inside.example:{receiver.port}/x")
        assert receiver.received == []
    assert attempt.status is None
    assert "inside.example has the address 127.0.0.1, which is not public" in str(attempt.error)


def test_dns_that_changes_its_answer_between_check_and_connection_gains_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connected: list[Any] = []

    async def connect(_: Any, sock: socket.socket, address: Any) -> None:
        connected.append(address)
        raise ConnectionRefusedError("not in a test")

    monkeypatch.setattr("asyncio.selector_events.BaseSelectorEventLoop.sock_connect", connect)
    with resolving(monkeypatch, "8.8.8.8", "127.0.0.1") as asked:
        attempt = send("https://rebound.example/x")
    assert asked == ["rebound.example"], "the name is looked up once"
    assert connected == [("8.8.8.8", 443)]
    assert attempt.error is not None


def test_a_redirect_is_not_followed() -> None:
    with Receiver() as inside, Receiver(lambda _: 302, {"location": inside.url}) as receiver:
        attempt = send(receiver.url)
        assert (len(receiver.received), inside.received) == (1, [])
    assert (attempt.status, attempt.error) == (302, "It answered with 302, and redirects are not followed.")


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as proxy, Receiver() as receiver:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        assert send(receiver.url).status == 200
        assert (len(receiver.received), proxy.received) == (1, [])


@contextmanager
def raw_server(serve: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """A server that does with its one connection what it is told, and the event that ends it."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                serve(connection, over)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        over.set()
        thread.join(10)


def test_plain_http_where_tls_is_expected_is_an_error() -> None:
    with raw_server(lambda connection, _: connection.sendall(b"HTTP/1.1 400 Bad\r\n\r\n")) as url:
        attempt = send(url.replace("http:", "https:"), timeout=30)
    assert (attempt.status, "SSL" in str(attempt.error)) == (None, True)


def test_an_endpoint_that_does_not_answer_is_given_up() -> None:
    with raw_server(lambda _, over: bool(over.wait(30)) and None) as url:
        attempt = send(url, timeout=0.2)
    assert attempt.error == "It did not take the event and answer within 0.2 s."


def test_an_endless_answer_is_cut_off() -> None:
    sent = 0

    def serve(connection: socket.socket, over: threading.Event) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        connection.settimeout(20)
        try:
            while not over.is_set():
                sent += connection.send(b"x" * 65536)
        except OSError:
            pass

    with raw_server(serve) as url:
        assert send(url, timeout=20).status == 200
    assert sent < 64 * 2**20


def test_an_endless_header_is_an_error() -> None:
    def serve(connection: socket.socket, over: threading.Event) -> None:
        try:
            connection.sendall(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 2**20)
            over.wait(30)
        except OSError:
            pass

    with raw_server(serve) as url:
        attempt = send(url, timeout=20)
    assert attempt.status is None
    assert attempt.error
    assert len(attempt.error) < 400


# deliveries


def deliver(store: Store, key: SigningKey, until: Callable[[], bool], **options: Any) -> None:
    """Run the process's deliverer until something is so."""
    chosen = WebhookOptions(
        **{"webhook_host": LOOPBACK, "webhook_retry_delay": 0.01, "webhook_timeout": 240.0, **options}
    )

    async def run() -> None:
        process = Deliverer(chosen, store, lambda: key, lambda: None)
        running = asyncio.create_task(process.run())
        deadline = time.monotonic() + 240
        while not until():
            assert time.monotonic() < deadline
            assert not running.done()
            await asyncio.sleep(0.01)
        process.stopping.set()
        await running

    asyncio.run(run())


def has_ended(store: Store) -> bool:
    return all(one.state is not DeliveryState.PENDING for one in store.webhooks.deliveries()[0])


def test_a_receiver_that_fails_five_times_gets_the_event_once(store: Store, key: SigningKey) -> None:
    handled: list[str] = []
    with Receiver(lambda number: 500 if number < 5 else 200) as receiver:
        add(store, receiver.url, key)
        tell(store)
        endpoint = store.webhooks.endpoint("webhook-a")
        assert endpoint is not None
        deliver(store, key, lambda: has_ended(store))
        client = OpenAI(api_key="x", webhook_secret=key.secret(endpoint.id, endpoint.salt))
        for number, got in enumerate(receiver.received):
            event: Any = client.webhooks.unwrap(got.body, got.headers)
            if number == 5 and event.id not in handled:  # the others were answered with an error
                handled.append(event.id)
        assert len(receiver.received) == 6
    delivery = only(store)
    assert {got.id for got in receiver.received} == {delivery.event.id} == set(handled)
    assert len({got.body for got in receiver.received}) == 1
    assert receiver.received[0].headers["content-type"] == "application/json"
    assert receiver.received[0].headers["user-agent"].startswith("Tunewright/")
    assert (delivery.state, [one.status for one in delivery.attempts]) == (
        DeliveryState.DELIVERED,
        [500] * 5 + [200],
    )


def test_after_its_last_attempt_it_is_a_dead_letter_which_a_replay_delivers(
    store: Store, key: SigningKey
) -> None:
    with Receiver(lambda number: 500 if number < 3 else 204) as receiver:
        add(store, receiver.url, key)
        tell(store)
        deliver(store, key, lambda: has_ended(store), webhook_attempts=3)
        dead = only(store)
        assert (dead.state, len(receiver.received)) == (DeliveryState.DEAD_LETTER, 3)
        store.webhooks.replay(dead.id)
        deliver(store, key, lambda: has_ended(store), webhook_attempts=3)
    assert only(store).state is DeliveryState.DELIVERED
    assert {got.id for got in receiver.received} == {dead.event.id}


def test_an_endpoint_that_is_gone_is_not_tried_again(store: Store, key: SigningKey) -> None:
    with Receiver(lambda _: 410) as receiver:
        add(store, receiver.url, key)
        tell(store)
        deliver(store, key, lambda: has_ended(store))
        assert (only(store).state, len(receiver.received)) == (DeliveryState.DEAD_LETTER, 1)


def test_an_endpoint_may_ask_for_time(store: Store, key: SigningKey) -> None:
    with Receiver(lambda _: 503, {"retry-after": "1800"}) as receiver:
        add(store, receiver.url, key)
        tell(store)
        deliver(store, key, lambda: bool(only(store).attempts))
    assert 1700 < only(store).due_at - time.time() <= 1800


def test_an_endpoint_that_hangs_holds_up_no_other_and_loses_nothing(store: Store, key: SigningKey) -> None:
    release = threading.Event()

    def hang(_: int) -> int:
        release.wait(240)
        return 200

    with Receiver(hang) as slow, Receiver() as quick:
        add(store, slow.url, key, name="slow"), add(store, quick.url, key, name="quick")
        for number in range(20):
            tell(store, f"ftjob-{number}")
        deliver(store, key, lambda: len(store.webhooks.deliveries(state=DeliveryState.DELIVERED)[0]) == 20)
        assert len(quick.received) == 20
        assert len(slow.received) <= 4
        release.set()
    assert store.webhooks.recover(most_tries=15) == 4
    claimed = store.webhooks.claim()
    assert ({endpoint.id for _, endpoint in claimed}, len(claimed)) == ({"webhook-slow"}, 4)
    assert len(store.webhooks.deliveries(state=DeliveryState.PENDING)[0]) == 20


def test_what_a_full_disk_keeps_from_being_recorded_is_recorded_later(
    store: Store, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a claim that is written, of which the connection is lost before its answer, is no attempt under way."""
    ended, claim, calls = store.webhooks.ended, store.webhooks.claim, Counter[str]()

    def full_at_first(*arguments: Any) -> None:
        calls["ended"] += 1
        if calls["ended"] <= 2:
            raise StorageFull("The disk of the database is full.")
        ended(*arguments)

    def lost_at_first(*arguments: Any) -> Any:
        claimed = claim(*arguments)
        calls["claim"] += bool(claimed)
        if calls["claim"] == 1 and claimed:
            raise DatabaseUnavailable("The database cannot be reached.")
        return claimed

    monkeypatch.setattr(deliverer, "_STORE_AGAIN_AFTER", 0.01)
    monkeypatch.setattr(store.webhooks, "ended", full_at_first)
    monkeypatch.setattr(store.webhooks, "claim", lost_at_first)
    with Receiver() as receiver:
        add(store, receiver.url, key)
        tell(store)
        deliver(store, key, lambda: has_ended(store))
        assert len(receiver.received) == 1, "what was taken is not sent again"
    assert only(store).state is DeliveryState.DELIVERED
    assert [one.status for one in only(store).attempts] == [None, 200]
    assert store.webhooks.next_due() is None


def test_an_attempt_with_a_fault_of_ours_ends(
    store: Store, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> Any:
        raise RuntimeError("a fault")

    monkeypatch.setattr(Sender, "send", broken)
    add(store, key=key)
    tell(store)
    deliver(store, key, lambda: has_ended(store), webhook_attempts=2)
    assert only(store).state is DeliveryState.DEAD_LETTER
    assert [one.error for one in only(store).attempts] == ["RuntimeError: a fault"] * 2


def test_without_its_key_nothing_is_sent_and_the_delivery_says_so(
    store: Store, key: SigningKey, tmp_path: Path
) -> None:
    with Receiver() as receiver:
        add(store, receiver.url, key)
        tell(store)
        other = SigningKey.open(tmp_path / "other.key")
        deliver(store, other, lambda: bool(only(store).attempts))
        assert receiver.received == []
    assert "rotate the secret" in str(only(store).attempts[0].error)


def test_waits_grow_with_chance_up_to_half_a_day() -> None:
    waits = [[backoff(tries, 5.0) for _ in range(50)] for tries in range(1, 16)]
    for number, some in enumerate(waits):
        about = min(5.0 * 3**number, 12 * 3600.0)
        assert 0.75 * about <= min(some) < max(some) <= 1.25 * about
    total = sum(min(5.0 * 3**number, 12 * 3600.0) for number in range(14)) / 3600
    assert 72 < total < 76, "the fifteen attempts take about three days"


# the API


async def _control(_: dict[str, Any]) -> dict[str, Any]:
    return {}


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return {}


@pytest.fixture
def api(built: dict[str, Any], store: Store, data: Workspace) -> TestClient:
    settings = Settings(data_dir=data.path, webhook_host=LOOPBACK, webhook_timeout=5)
    if not built:
        built["server"], _ = build(settings, store)
    built["server"].app.state.context = ServiceContext(
        settings, store, data, _control, webhook_sender=lambda: Sender(LOOPBACK, 60.0)
    )
    return TestClient(built["server"].app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


ENDPOINTS, DELIVERIES = "/v1/webhook_endpoints", "/v1/webhook_deliveries"
NEW = {"name": "ci", "url": "https://ci.example.com/hooks", "event_types": [DONE]}


def create(api: TestClient, **fields: Any) -> dict[str, Any]:
    answer = api.post(ENDPOINTS, json={**NEW, **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def error(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return dict(response.json()["error"])


def test_the_stock_client_manages_endpoints(api: TestClient) -> None:
    client = OpenAI(
        base_url="http://127.0.0.1:8000/v1", api_key="x", http_client=_through(api), max_retries=0
    )
    made = client.webhooks.create(name="ci", url=NEW["url"], event_types=[DONE, DONE])  # type: ignore[list-item]
    assert (made.object, made.event_types) == ("webhook_endpoint", [DONE])
    assert made.signing_secret.startswith("whsec_")
    assert client.webhooks.retrieve(made.id).signing_secret_hint == "whsec_..." + made.signing_secret[-5:]
    changed = client.webhooks.update(made.id, name="other", event_types=["fine_tuning.job.failed"])
    assert (changed.name, changed.url, changed.event_types) == (
        "other",
        NEW["url"],
        ["fine_tuning.job.failed"],
    )
    rotated = client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    assert rotated.signing_secret != made.signing_secret
    assert [one.id for one in client.webhooks.list(limit=1)] == [made.id]
    assert DONE in client.webhooks.event_types.list().data
    assert client.webhooks.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.webhooks.retrieve(made.id)


def _through(api: TestClient) -> Any:
    """An HTTP client of the `openai` package that calls the application."""
    import httpx2

    def call(request: Any) -> Any:
        answer = api.request(
            request.method, str(request.url), content=request.read(), headers=dict(request.headers)
        )
        headers = {"content-type": answer.headers["content-type"]}
        return httpx2.Response(answer.status_code, content=answer.content, headers=headers)

    return httpx2.Client(transport=httpx2.MockTransport(call))


def test_a_secret_is_shown_once(api: TestClient) -> None:
    made = create(api)
    secret = made["signing_secret"]
    shown = [
        api.get(ENDPOINTS), api.get(f"{ENDPOINTS}/{made['id']}"),
        api.post(f"{ENDPOINTS}/{made['id']}", json={"name": "other"}),
    ]  # fmt: skip
    for answer in shown:
        assert answer.status_code == 200
        assert secret not in answer.text
    assert create(api) != made, "it was changed since, so this is no repeat"


def test_a_repeated_request_makes_one_endpoint(api: TestClient, store: Store) -> None:
    assert create(api) == create(api)
    assert len(store.webhooks.endpoints()[0]) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"url": "http://ci.example.com"}, "url"), ({"url": "https://10.0.0.1"}, "url"), ({"url": ""}, "url"),
        ({"event_types": []}, "event_types"), ({"event_types": ["batch.done"]}, "event_types"),
        ({"event_types": "x"}, "event_types"), ({"name": ""}, "name"), ({"name": "a\0"}, "name"),
        ({"secret": "mine"}, "secret"),
    ],
)  # fmt: skip
def test_wrong_endpoints_are_refused(
    api: TestClient, store: Store, fields: dict[str, Any], param: str
) -> None:
    found = error(api.post(ENDPOINTS, json={**NEW, **fields}))
    assert param in (found["param"] or "")
    assert store.webhooks.endpoints()[0] == []
    made = create(api)
    assert error(api.post(f"{ENDPOINTS}/{made['id']}", json=fields))["message"]


def test_an_unknown_event_is_refused_with_the_known_ones(api: TestClient) -> None:
    message = error(api.post(ENDPOINTS, json={**NEW, "event_types": ["job.done"]}))["message"]
    assert "job.done" in message
    assert "fine_tuning.job.succeeded" in message


def test_what_does_not_exist_is_not_found(api: TestClient) -> None:
    for method, path in (
        ("GET", f"{ENDPOINTS}/x"), ("DELETE", f"{ENDPOINTS}/x"), ("POST", f"{ENDPOINTS}/x"),
        ("POST", f"{ENDPOINTS}/x/rotate_secret"), ("POST", f"{ENDPOINTS}/x/test"),
        ("GET", f"{DELIVERIES}/x"), ("POST", f"{DELIVERIES}/x/replay"),
        ("GET", f"{DELIVERIES}?webhook_endpoint_id=x"),
    ):  # fmt: skip
        body = {"event_type": DONE} if path.endswith("/test") else {}
        answer = api.request(method, path, json=body if method == "POST" else None)
        assert error(answer, 404)["code"].startswith("webhook_"), (method, path)


@pytest.mark.parametrize(("path", "body"), [("", {"name": "other"}), ("/rotate_secret", {})])
def test_what_is_deleted_while_it_is_changed_is_not_found(
    api: TestClient, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    """On PostgreSQL another transaction may delete it between the two statements of the change."""
    url, read = f"{ENDPOINTS}/{create(api)['id']}{path}", webhook_store._endpoint

    def deleted_then(connection: Connection, id: str) -> WebhookEndpoint | None:
        found = read(connection, id)
        connection.execute(delete(webhook_endpoints))
        return found

    monkeypatch.setattr(webhook_store, "_endpoint", deleted_then)
    assert error(api.post(url, json=body), 404)["code"] == "webhook_endpoint_not_found"


def test_a_test_sends_a_signed_event_at_once(api: TestClient, store: Store) -> None:
    with Receiver(lambda number: (200, 500)[number]) as receiver:
        made = create(api, url=receiver.url)
        url = f"{ENDPOINTS}/{made['id']}/test"
        answers = [api.post(url, json={"event_type": "export.failed"}).json() for _ in range(2)]
        assert [one["status_code"] for one in answers] == [200, 500]
        assert answers[0]["webhook_endpoint_id"] == made["id"]
        got = receiver.received[0]
        client = OpenAI(api_key="x", webhook_secret=made["signing_secret"])
        event: Any = client.webhooks.unwrap(got.body, got.headers)
        assert (event.type, event.data["id"] if isinstance(event.data, dict) else event.data.id) == (
            "export.failed",
            "test",
        )
    found = error(api.post(url, json={"event_type": DONE}))
    assert found["code"] == "webhook_not_answered"
    assert "Connect" in found["message"]
    assert store.webhooks.deliveries()[0] == []
    assert "event_type" in str(error(api.post(url, json={"event_type": "x"}))["param"])


def test_tests_of_one_project_hold_up_no_other(api: TestClient, built: dict[str, Any]) -> None:
    with Receiver() as receiver:
        url = f"{ENDPOINTS}/{create(api, url=receiver.url)['id']}/test"
        running = built["server"].app.state.context.webhook_tests
        running["other"] = 2
        assert api.post(url, json={"event_type": DONE}).status_code == 200
        running["default"] = 2
        assert error(api.post(url, json={"event_type": DONE}), 429)["code"] == "too_many_webhook_tests"
        assert dict(running) == {"other": 2, "default": 2}, "a test that has ended leaves its place"


def test_deliveries_are_listed_and_replayed(api: TestClient, store: Store) -> None:
    made = create(api, event_types=[DONE, "export.failed"])
    tell(store)
    ((claimed, _),) = store.webhooks.claim()
    tell(store, "export-1", "export.failed")
    store.webhooks.ended(claimed, Attempt(7.5, 0.5, 500, "It answered with 500."), None)

    def ids(**params: Any) -> list[str]:
        return [one["event"]["data"]["id"] for one in api.get(DELIVERIES, params=params).json()["data"]]

    assert ids() == ["export-1", "ftjob-1"]
    assert ids(state="dead_letter") == ids(event_type=DONE) == ["ftjob-1"]
    assert ids(state="pending", webhook_endpoint_id=made["id"]) == ["export-1"]
    assert ids(state="delivered") == []
    page = api.get(DELIVERIES, params={"limit": 1}).json()
    assert page["has_more"]
    assert ids(after=page["last_id"]) == ["ftjob-1"]
    url = f"{DELIVERIES}/{claimed.id}"
    shown = api.get(url).json()
    assert shown["attempts"] == [
        {"created_at": 7, "seconds": 0.5, "status_code": 500, "error": "It answered with 500."}
    ]
    assert (shown["state"], shown["ended_at"], shown["next_attempt_at"]) == ("dead_letter", 8, None)
    replayed = api.post(f"{url}/replay").json()
    assert (replayed["state"], replayed["event"]) == ("pending", shown["event"])
    assert replayed["next_attempt_at"] <= time.time()
    assert "state" in str(error(api.get(DELIVERIES, params={"state": "x"}))["param"])


def test_a_lost_key_is_told_and_a_rotation_makes_it_good(api: TestClient, data: Workspace) -> None:
    with Receiver() as receiver:
        made = create(api, url=receiver.url)
        data.webhook_key.unlink()
        url = f"{ENDPOINTS}/{made['id']}"
        assert error(api.post(f"{url}/test", json={"event_type": DONE}))["code"] == "webhook_secret_lost"
        rotated = api.post(f"{url}/rotate_secret").json()
        assert api.post(f"{url}/test", json={"event_type": DONE}).json()["status_code"] == 200
        got = receiver.received[0]
        OpenAI(api_key="x", webhook_secret=rotated["signing_secret"]).webhooks.unwrap(got.body, got.headers)


def test_an_endpoint_is_no_text_with_its_secret(api: TestClient) -> None:
    from tunewright.api.webhooks.schemas import WebhookEndpointWithSecret

    made = create(api)
    assert made["signing_secret"] not in repr(WebhookEndpointWithSecret(**made))


def test_records_of_endpoints_have_no_secret() -> None:
    assert "secret" not in " ".join(WebhookEndpoint.__dataclass_fields__)
