"""Protection under load: limits on the number, duration and size of requests, and on the content of bodies."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import socket as sockets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from fake_engine import Client, Handler, engine_at, gateway_for, say_hello, stream
from rows import FILE, Publish, create_job, engine_info
from tunewright.api.gateway import bodies
from tunewright.api.gateway.bodies import check_tokens, parse_body, write_body
from tunewright.api.gateway.proxy import Gateway, Relay
from tunewright.api.http import connection, middleware
from tunewright.api.http.access import Gate
from tunewright.api.http.app import build
from tunewright.api.http.middleware import AccessMiddleware
from tunewright.api.http.process import web_server
from tunewright.config import Settings
from tunewright.errors import InvalidRequest, QuotaExceeded, TooLarge, TunewrightError
from tunewright.registry.workspace import Workspace
from tunewright.store.records import Engine
from tunewright.store.states import EngineState, JobState, Residency
from tunewright.store.store import Store

BASE, CHAT, TUNED, SHA = "tiny", "/v1/chat/completions", "ft:tiny::1", "a" * 64
EVENT = b'data: {"text":"hello"}\n\n'


def relay(gateway: Gateway, client: Client, **body: Any) -> asyncio.Task[None]:
    """A request of `client`, under way."""
    path = "/v1/completions" if "prompt" in body else CHAT
    answer = Relay(gateway, path, {"model": BASE, **body}, project="default")(
        {"type": "http"}, client.receive, client.send
    )
    return asyncio.create_task(answer)  # type: ignore[arg-type]


@asynccontextmanager
async def gateway_to(store: Store, socket: Path, handler: Handler, **limits: Any) -> AsyncIterator[Any]:
    """(gateway, fake engine)"""
    gateway = gateway_for(store, **limits)
    try:
        async with engine_at(socket, handler) as fake:
            yield gateway, fake
    finally:
        await gateway.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


# how many generations


@pytest.mark.anyio
async def test_more_than_the_limit_are_told_to_come_back(store: Store, socket: Path, engine: Engine) -> None:
    go_on = asyncio.Event()

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await go_on.wait()
        return await say_hello(request, body)

    async with gateway_to(store, socket, handler, max_requests=2) as (gateway, fake):
        clients = [Client() for _ in range(4)]
        running = [relay(gateway, client) for client in clients[:2]]
        await until(lambda: len(fake.seen) == 2)
        await relay(gateway, clients[2])
        refused = clients[2]
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert (refused.error["type"], refused.error["code"]) == ("rate_limit_error", "too_many_requests")
        assert "--max-requests" in refused.error["message"]
        go_on.set()
        await asyncio.gather(*running)
        await relay(gateway, clients[3])
        assert [client.status for client in clients] == [200, 200, 429, 200]
        assert len(fake.seen) == 3, "what is refused does not reach the engine"


@pytest.mark.anyio
async def test_who_waits_for_an_adapter_counts(
    store: Store, socket: Path, engine: Engine, publish_model: Publish
) -> None:
    publish_model({})
    store.engines.set_residency(engine, SHA, Residency.LOADING)

    loaded = asyncio.Event()

    async def load(operation: dict[str, Any]) -> dict[str, Any]:
        await loaded.wait()
        return {"state": "loaded"}

    async with gateway_to(store, socket, say_hello, max_requests=1, load=load) as (gateway, _):
        waits, refused = Client(), Client()
        waiting = relay(gateway, waits, model=TUNED)
        await until(lambda: gateway.router.in_flight[BASE] == 1)
        await relay(gateway, refused)
        assert refused.status == 429
        store.engines.set_residency(engine, SHA, Residency.LOADED)
        loaded.set()
        await waiting
        assert (waits.status, gateway.router.in_flight[BASE]) == (200, 0)


@pytest.mark.anyio
async def test_each_engine_has_its_own_limit(store: Store, socket: Path, engine: Engine) -> None:
    store.engines.declare([BASE, "other"])
    store.engines.starting("other", str(socket), engine_info(internal_name="o"))
    store.engines.set_state("other", EngineState.READY)

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["model"] != "o":
            await asyncio.sleep(30)
        return await say_hello(request, body)

    async with gateway_to(store, socket, handler, max_requests=1) as (gateway, fake):
        busy, free = Client(), Client()
        running = relay(gateway, busy)
        await until(lambda: fake.seen)
        await relay(gateway, free, model="other")
        assert free.status == 200
        busy.leaves.set()
        await running


@pytest.mark.anyio
async def test_the_count_is_exact_whatever_happens(store: Store, socket: Path, engine: Engine) -> None:
    """Answers, errors, lost engines, clients that leave, tasks that are cancelled, timeouts; at random moments."""
    chance = random.Random(7)
    most, at_once, peak = 12, 0, 0

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal at_once, peak
        at_once += 1
        peak = max(peak, at_once)
        try:
            await asyncio.sleep(chance.random() * 0.05)
            what = body["what"]
            if what == "hang":
                await asyncio.sleep(60)
            if what == "lost" and request.transport is not None:
                request.transport.abort()
            if what == "stream":
                return await stream(request, EVENT, b"data: [DONE]\n\n")
            return web.json_response({}, status={"wrong": 400, "gone": 404, "error": 500}.get(what, 200))
        finally:
            at_once -= 1

    async with gateway_to(store, socket, handler, max_requests=most, request_timeout=60) as (gateway, _):

        async def once(what: str) -> int:
            client = Client()
            task = relay(gateway, client, what=what)
            if what in ("leave", "cancel"):
                await asyncio.sleep(chance.random() * 0.1)
                client.leaves.set() if what == "leave" else task.cancel()
            await asyncio.wait([task])
            assert 0 <= gateway.router.in_flight[BASE] <= most
            return client.status if client.messages else 0

        async def until_admitted(what: str) -> tuple[str, int]:
            while (status := await once(what)) == 429:
                await asyncio.sleep(chance.random() * 0.1)
            return what, status

        kinds = ["fine", "stream", "wrong", "gone", "error", "lost"]
        random_kinds = ["leave", "cancel"]
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*map(until_admitted, (kinds + random_kinds) * 8))
        assert {answer for answer in answers if answer[0] in kinds} == {
            ("fine", 200), ("stream", 200), ("wrong", 400), ("gone", 404), ("error", 503), ("lost", 503),
        }  # fmt: skip
        assert gateway.router.in_flight[BASE] == 0
        gateway.request_timeout = 0.6
        assert set(await asyncio.gather(*(once("hang") for _ in range(2 * most)))) == {429, 504}
        assert gateway.router.in_flight == {BASE: 0}
        await until(lambda: at_once == 0)
    assert 1 < peak <= most


# how long


def never_ends(request: web.Request, body: dict[str, Any]) -> Any:
    async def answer() -> web.StreamResponse:
        response = await stream(request, EVENT) if body.get("stream") else web.StreamResponse()
        await asyncio.sleep(30)
        return response

    return answer()


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.anyio
async def test_a_generation_that_takes_too_long_is_ended(
    store: Store, socket: Path, engine: Engine, streams: bool
) -> None:
    client = Client()
    async with gateway_to(store, socket, never_ends, request_timeout=0.3) as (gateway, fake):
        began = time.monotonic()
        await relay(gateway, client, stream=streams)
        assert 0.3 <= time.monotonic() - began < 5
        await asyncio.wait_for(fake.aborted.wait(), 5)
    if streams:
        first, last, rest = client.body.split(b"\n\n")
        assert (client.status, first + b"\n\n", rest) == (200, EVENT, b"")
        error = json.loads(last.removeprefix(b"data: "))["error"]
    else:
        assert (client.status, client.headers["x-should-retry"]) == (504, "false")
        error = client.error
    assert (error["code"], error["type"]) == ("request_timeout", "server_error")
    assert "0.3 s" in error["message"]


@pytest.mark.anyio
async def test_the_wait_for_an_adapter_is_part_of_it(
    store: Store, engine: Engine, publish_model: Publish
) -> None:
    publish_model({})
    store.engines.set_residency(engine, SHA, Residency.LOADING)

    async def never(operation: dict[str, Any]) -> dict[str, Any]:
        return await asyncio.Event().wait()  # type: ignore[return-value]

    client = Client()
    await relay(gateway_for(store, request_timeout=0.2, load=never), client, model=TUNED)
    assert client.status == 504


# jobs


@pytest.fixture
def make(store: Store, data: Workspace) -> Callable[..., TestClient]:
    def client(**options: Any) -> TestClient:
        return TestClient(
            build(Settings(data_dir=data.path, base=[f"{BASE}=/"], **options), store)[0].app,
            base_url="http://127.0.0.1:8000",
            raise_server_exceptions=False,
        )

    return client


def test_a_full_queue_takes_no_more_jobs(make: Callable[..., TestClient], store: Store) -> None:
    api = make(max_queued_jobs=2)

    def create(seed: int, key: str | None = None) -> httpx.Response:
        body = {"model": BASE, "training_file": FILE["id"], "seed": seed}
        headers = {"Idempotency-Key": key} if key else {}
        return api.post("/v1/fine_tuning/jobs", json=body, headers=headers)

    first, second = create(1, "one"), create(2)
    refused = create(3)
    assert [first.status_code, second.status_code, refused.status_code] == [200, 200, 429]
    assert refused.headers["retry-after"] == "30"
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "too_many_jobs")
    assert create(1, "one").json()["id"] == first.json()["id"], "a retry gets its job"
    assert create(2).json()["id"] == second.json()["id"], "with or without a key"
    wrong = api.post("/v1/fine_tuning/jobs", json={"model": "nobody", "training_file": FILE["id"]})
    assert wrong.status_code == 404, "what can never be done is not to be tried again"
    store.jobs.cancel(first.json()["id"])
    assert create(4).status_code == 200


def test_jobs_wait_until_they_hold_a_device(store: Store) -> None:
    for state in JobState:
        create_job(store, state=state, fingerprint=state.value)
    assert store.jobs.count_waiting() == 3  # validating, queued, paused


# bodies that come slowly, and uploads


async def post(access: Any, path: str, *chunks: bytes, pause: float = 0.0) -> Client:
    """Sends the chunks and then nothing more, without an end."""
    client = Client()
    coming = list(chunks)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        if coming:
            return {"type": "http.request", "body": coming.pop(0), "more_body": True}
        return await client.receive()

    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    async with asyncio.timeout(10):
        await access(scope, receive, client.send)
    return client


async def reads_all(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.anyio
async def test_a_body_that_stops_coming_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "_BODY_STALLED", 0.2)
    access = AccessMiddleware(reads_all, Gate(None), {None: 2**20}, 8)
    client = await post(access, CHAT, b"{", b'"model"')
    assert (client.status, client.error["code"], client.headers["connection"]) == (
        408,
        "body_stalled",
        "close",
    )
    assert "after 8 bytes" in client.error["message"]


@pytest.mark.anyio
async def test_a_slow_body_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "_BODY_STALLED", 0.5)
    got = b""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal got
        while len(got) < 6:
            got += (await receive())["body"]
        await reads_all(scope, ended, send)

    async def ended() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    access = AccessMiddleware(app, Gate(None), {None: 2**20}, 8)
    client = await post(access, CHAT, *[b"x"] * 6, pause=0.15)
    assert (client.status, got) == (200, b"x" * 6)


@pytest.mark.anyio
async def test_a_body_that_comes_too_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a byte now and then would hold a place for an upload for ever."""
    monkeypatch.setattr(middleware, "_GRACE", 0.2)
    monkeypatch.setattr(middleware, "_SLOWEST", 100)
    access = AccessMiddleware(reads_all, Gate(None), {None: 2**20}, 8)
    slow = await post(access, "/v1/files", *[b"x"] * 100, pause=0.05)
    assert (slow.status, slow.error["code"], slow.headers["connection"]) == (408, "body_stalled", "close")
    assert "too slowly" in slow.error["message"]
    monkeypatch.setattr(middleware, "_BODY_STALLED", 0.5)
    fast_enough = await post(access, "/v1/files", *[b"x" * 50] * 10, pause=0.05)
    assert "No byte of the body" in fast_enough.error["message"], "it stopped, and was not too slow before"


@pytest.mark.anyio
async def test_the_bodies_of_all_requests_together_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "_ALL_BODIES", 10)
    monkeypatch.setattr(middleware, "_BODY_STALLED", 0.3)
    access = AccessMiddleware(reads_all, Gate(None), {None: 2**20}, 8)
    running = asyncio.create_task(post(access, CHAT, b"12345678"))
    await asyncio.sleep(0.1)
    refused = await post(access, CHAT, b"123")
    assert (refused.status, refused.error["code"]) == (429, "too_many_bytes")
    assert refused.headers["retry-after"] == "2"
    upload = await post(access, "/v1/files", b"123")
    assert upload.status == 408, "uploads are not kept in memory"
    assert (await running).status == 408
    assert (await post(access, CHAT, b"12345678")).status == 408, "their bytes are free again"


@pytest.mark.anyio
async def test_after_a_body_its_client_may_wait_as_long_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "_BODY_STALLED", 0.05)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert not (await receive())["more_body"]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receive(), 0.3)  # the client has not left, and nothing was refused
        await reads_all(scope, whole, send)

    async def whole() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    client = Client()
    messages = iter([await whole()])

    async def receive() -> dict[str, Any]:
        return next(messages, None) or await client.receive()

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
    await AccessMiddleware(app, Gate(None), {None: 2**20}, 8)(scope, receive, client.send)
    assert client.status == 200


@pytest.mark.anyio
async def test_uploads_at_once_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "_BODY_STALLED", 0.3)

    access = AccessMiddleware(reads_all, Gate(None), {None: 2**20}, 2)
    paths = ("/v1/files", "/v1/adapters/upload")
    running = [asyncio.create_task(post(access, path, b"x")) for path in paths]
    await asyncio.sleep(0.1)
    refused = await post(access, "/v1/files", b"x")
    assert (refused.status, refused.error["code"]) == (429, "too_many_uploads")
    assert refused.headers["retry-after"] == "5"
    assert [client.status for client in await asyncio.gather(*running)] == [408, 408]
    assert (await post(access, "/v1/files", b"x")).status == 408, "their places are free again"


# bodies of generations


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    return f'{{"model":"{BASE}","x":{opening * depth}{closing * depth}}}'.encode()


def with_model(name: str) -> bytes:
    return json.dumps({"model": name}).encode()


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "invalid_json"),
        (b"null", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'"text"', "invalid_json"),
        (b'{"model":"tiny"', "invalid_json"),
        (b'\xef\xbb\xbf{"model":"tiny"}', "invalid_json"),
        (b'{"model":"tiny","prompt":"\xff"}', "invalid_json"),
        (b'{"model":"tiny","prompt":"\xed\xa0\x80"}', "invalid_json"),
        ('{"model":"tiny"}'.encode("utf-16"), "invalid_json"),
        (b'{"model":"tiny","temperature":NaN}', "invalid_json"),
        (b'{"model":"tiny","temperature":-Infinity}', "invalid_json"),
        (b'{"model":"tiny","n":' + b"9" * 5000 + b"}", "invalid_json"),
        (b'{"model":"tiny","prompt":"\x00"}', "invalid_json"),
        (b'{"model":"tiny","top_k":18446744073709551616}', "invalid_json"),
        (b'{"model":"tiny","a":[{"b":-9223372036854775809}]}', "invalid_json"),
        (b'{"model":"tiny","stop":["\\ud800"]}', "invalid_json"),
        (b'{"model":"tiny","\\uDFFF":1}', "invalid_json"),
        (b'{"model":"tiny","stop":["\\udc00\\ud800"]}', "invalid_json"),
        (b'{"model":"tiny","structured_outputs":5}', "invalid_value"),
        (b"{}", "invalid_value"),
        (b'{"model":true}', "invalid_value"),
        (b'{"model":null}', "invalid_value"),
        (b'{"model":""}', "invalid_value"),
        (with_model("a\nb"), "invalid_value"),
        (with_model("a\0b"), "invalid_value"),
        (with_model("\ud800"), "invalid_json"),
        (with_model("x" * 2**20), "invalid_value"),
        (b'{"model":"tiny","chat_template":null}', "unsupported"),
        (b'{"model":"tiny","chat_template_kwargs":{"chat_template":"x"}}', "unsupported"),
        (b'{"model":"tiny","model":5}', "invalid_value"),
        *((nested(depth), "invalid_json") for depth in (128, 900, 1000, 5000, 100_000)),
        *((nested(depth, '{"a":', "}"), "invalid_json") for depth in (129, 900, 100_000)),
    ],
)
def test_a_body_that_cannot_be_passed_on_is_refused(raw: bytes, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_body(raw)
    assert (caught.value.status, caught.value.code) == (400, code)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "\0 \u2028 \U0001f600 \\ud800"},
        {
            "prompt": 2**64 - 1,
            "n": -(2**63),
            "max_tokens": 1.5,
            "stream": "perhaps",
            "structured_outputs": None,
        },
        {"prompt": "9" * 5000, "temperature": 0.1234567890123456789},
        {"x": json.loads(nested(127))["x"]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}] * 500},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": "chat_template"},
    ],
)
def test_everything_else_is_for_vllm_to_judge(body: dict[str, Any]) -> None:
    body = {"model": BASE, **body}
    parsed = parse_body(json.dumps(body).encode())
    assert parsed == body
    assert json.loads(write_body(parsed)) == body


def test_of_a_key_that_comes_twice_the_last_value_counts_for_vllm_too() -> None:
    parsed = parse_body(b'{"model":"first","n":1,"model":"tiny","n":2}')
    assert write_body(parsed) == b'{"model":"tiny","n":2}'


def test_a_number_that_became_infinite_is_refused() -> None:
    parsed = parse_body(b'{"model":"tiny","temperature":1e999}')
    with pytest.raises(InvalidRequest, match="too large"):
        write_body(parsed)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda part: st.lists(part, max_size=40) | st.dictionaries(st.text(), part, max_size=5),
)


@given(st.dictionaries(st.text(), JSON_VALUES, max_size=5))
def test_a_body_written_in_parts_is_the_same(body: dict[str, Any]) -> None:
    with patch.object(bodies, "_SLICE", 7):
        assert write_body(body, in_parts=True) == write_body(body)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (b"[" + b"[]," * 2**18 + b"[]]", "objects, lists and names"),
        (b"{" + b'"a":1,' * 2**18 + b'"b":1}', "objects, lists and names"),
        (b"[" + b"1.5," * 2**16 + b"1.5]", "decimal numbers"),
        (b'"' + b"\\u0041" * (2**20 + 1) + b'"', "escaped characters"),
    ],
)
def test_a_body_that_takes_long_to_parse_is_refused(value: bytes, what: str) -> None:
    with pytest.raises(TooLarge, match=what):
        parse_body(b'{"model": "tiny", "prompt": ' + value + b"}")


def test_a_body_of_too_many_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TooLarge):
        parse_body(b'{"model":"tiny","prompt":[' + b"1," * 2**20 + b"1]}")
    monkeypatch.setattr(bodies, "_MOST_VALUES", 3)
    assert parse_body(b'{"model":"tiny","prompt":[1,2,3]}')


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": [5, 100]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [[1], [2, 10**30]]}, "prompt"),
        ({"prompt": ["a", 100]}, "prompt"),
        ({"input": [100]}, "input"),
        ({"stop_token_ids": [99, 100]}, "stop_token_ids"),
        ({"allowed_token_ids": [-5]}, "allowed_token_ids"),
        ({"logprob_token_ids": [100]}, "logprob_token_ids"),
        ({"logit_bias": {"99": 1, "100": 1}}, "logit_bias"),
        ({"logit_bias": {" -1": 1}}, "logit_bias"),
        ({"kv_transfer_params": {"prompt_token_ids": [100]}}, "kv_transfer_params"),
    ],
)
def test_tokens_outside_the_vocabulary_are_refused(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_tokens(body, 100)
    assert (caught.value.param, caught.value.code) == (param, "token_out_of_vocabulary")
    assert "0 to 99" in caught.value.message
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "100", "logit_bias": {"0": 1, "99": -1, "x": 1}},
        {"prompt": [0, 99], "stop_token_ids": [], "allowed_token_ids": None},
        {"prompt": [[0], [99]], "logit_bias": [100], "kv_transfer_params": [100]},
        {"prompt": ["100", {"a": 100}, 1.5, None, True]},
        {"input": [{"role": "user", "content": "100"}]},
        {"tokens": [100]},
    ],
)
def test_tokens_inside_it_and_what_is_no_token_are_not(body: dict[str, Any]) -> None:
    check_tokens(body, 100)


@pytest.mark.anyio
async def test_the_vocabulary_is_the_engines(store: Store, socket: Path, engine: Engine) -> None:
    assert engine.info is not None
    info = engine.info.model_copy(update={"vocab_size": 100})
    store.engines.set_state(engine.name, EngineState.READY, info=info)

    async with gateway_to(store, socket, say_hello) as (gateway, fake):
        wrong, right = Client(), Client()
        await relay(gateway, wrong, prompt=[100])
        await relay(gateway, right, prompt=[99])
        assert (wrong.status, wrong.error["param"], right.status) == (400, "prompt", 200)
        assert [body["prompt"] for _, body in fake.seen] == [[99]]


@pytest.mark.anyio
async def test_an_error_can_quote_anything(store: Store, socket: Path, engine: Engine) -> None:
    """Half a surrogate pair, and a message as long as the body it quotes."""

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": f"wrong: {body['prompt']}"}}, status=400)

    client = Client()
    async with gateway_to(store, socket, handler) as (gateway, _):
        await relay(gateway, client, prompt="\ud800" * 10**6)  # as if it were not refused before
    assert client.status == 400
    assert client.error["message"].startswith("wrong: \ud800")
    assert len(client.error["message"]) < 3000


@pytest.mark.parametrize(("key", "status"), [("response_format", 400), ("tools", 400), ("seed", 503)])
@pytest.mark.anyio
async def test_a_grammar_that_cannot_be_made_is_the_requests_fault(
    store: Store, socket: Path, engine: Engine, key: str, status: int
) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "Internal server error"}}, status=500)

    client = Client()
    async with gateway_to(store, socket, handler) as (gateway, _):
        await relay(gateway, client, **{key: {}})
    assert client.status == status


def test_every_error_that_asks_for_patience_says_for_how_long() -> None:
    def tree(kind: type[TunewrightError]) -> Iterator[type[TunewrightError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from tree(child)

    for kind in tree(TunewrightError):
        waiting_helps = kind.status in (429, 503) and kind is not QuotaExceeded
        assert (kind("x").retry_after is not None) == waiting_helps, kind


# the process: memory, readers that do not read, senders that do not send


class Server:
    """The api's web server in a process of its own, without workers."""

    def __init__(self, settings: Settings) -> None:
        listener = sockets.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        program = (
            "import socket, sys\n"
            "from tunewright.api.http.process import web_server\n"
            "from tunewright.api.http.app import build\n"
            "from tunewright.config import settings_in_child\n"
            "from tunewright.store.store import Store\n"
            "settings = settings_in_child()\n"
            "server, _ = build(settings, Store.open(settings.storage.resolved_database_url))\n"
            "web = web_server(server.app, settings.server)\n"
            "web.config.lifespan = 'off'  # LitServe's, which needs its workers\n"
            "web.run(sockets=[socket.socket(fileno=int(sys.argv[1]))])\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, str(listener.fileno())],
            env={**os.environ, **settings.handover(), "PYTHONPATH": os.pathsep.join(sys.path)},
            pass_fds=[listener.fileno()],
        )
        listener.close()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)

    @property
    def memory(self) -> float:
        """Resident, in MiB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 2**20

    def ask(self, **body: Any) -> sockets.socket:
        """A connection on which this was requested, with small buffers for the answer."""
        connection = sockets.socket()
        connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 65536)
        connection.settimeout(20)
        connection.connect(self.address)
        raw = json.dumps({"model": BASE, **body}).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(raw)}\r\n\r\n"
        )
        connection.sendall(head.encode() + raw)
        return connection


class Torrent:
    """An engine that answers with a huge body."""

    def __init__(self) -> None:
        self.written = 0
        self.ended = threading.Event()

    async def answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        size = body["seed"]
        if not body.get("stream"):
            return web.Response(body=b"x" * size, content_type="application/json")
        block = (b'data: {"text":"' + b"x" * 1000 + b'"}\n\n') * 64
        self.ended.clear()
        self.written = 0
        response = await stream(request)
        try:
            while self.written < size:
                await response.write(block)
                self.written += len(block)
            await response.write(b"data: [DONE]\n\n")
        finally:
            self.ended.set()
        return response


@contextmanager
def engine_in_thread(socket: Path, handler: Handler) -> Iterator[None]:
    """Runs the fake engine in a thread, for tests that block."""
    started = threading.Event()
    ended: list[Callable[[], object]] = []

    async def run() -> None:
        async with engine_at(socket, handler):
            over, loop = asyncio.Event(), asyncio.get_running_loop()
            ended.append(lambda: loop.call_soon_threadsafe(over.set))
            started.set()
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert started.wait(10)
    try:
        yield
    finally:
        ended[0]()
        thread.join()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[Any]:
    """(server, torrent): a reader must take something every two seconds."""
    data = Workspace(tmp_path_factory.mktemp("served"))
    data.create()
    shutil.copyfile(migrated_database, data.path / "tunewright.db")
    settings = Settings(data_dir=data.path, base=[f"{BASE}=/"], slow_reader_timeout=2)
    store, torrent = Store.open(settings.storage.resolved_database_url), Torrent()
    store.engines.declare([BASE])
    with tempfile.TemporaryDirectory(prefix="tw") as folder:
        store.engines.starting(BASE, f"{folder}/s", engine_info(internal_name="base"))
        store.engines.set_state(BASE, EngineState.READY)
        with engine_in_thread(Path(folder) / "s", torrent.answer):
            server = Server(settings)
            try:
                assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
                yield server, torrent
            finally:
                server.stop()
    store.close()


def test_readers_that_take_nothing_cost_little_and_are_cut_off(served: tuple[Server, Torrent]) -> None:
    """One asked for a gibibyte of events, one for a whole answer of 24 MiB. Others are answered meanwhile."""
    server, torrent = served
    before = peak = server.memory
    readers = [server.ask(seed=2**30, stream=True), server.ask(seed=24 * 2**20)]
    began = time.monotonic()
    while time.monotonic() < began + 0.8:
        answer = httpx.post(f"{server.url}{CHAT}", json={"model": BASE, "seed": 5}, timeout=5)
        assert answer.content == b"xxxxx"
        peak = max(peak, server.memory)
    assert 0 < torrent.written < 2**25, "the engine waits, too"
    assert peak - before < 100, "24 MiB, read, renamed and on their way; and next to nothing of the gibibyte"
    assert torrent.ended.wait(10), "the engine was not stopped"
    time.sleep(1)
    assert server.memory - before < 40
    for reader in readers:
        got = b""
        while part := reader.recv(2**20):
            got += part
        assert got.startswith(b"HTTP/1.1 200")
        assert not got.endswith(b"0\r\n\r\n"), "that would be the end of a whole answer"
        assert len(got) < 2**24
        reader.close()


def test_a_slow_reader_that_reads_is_served_to_the_end(served: tuple[Server, Torrent]) -> None:
    reader = served[0].ask(seed=12 * 2**20, stream=True)
    got = b""
    for _ in range(8):  # for longer than the limit, and far from its end
        time.sleep(0.4)
        got += reader.recv(65536)
    while not got.endswith(b"0\r\n\r\n"):
        part = reader.recv(2**20)
        assert part, "it was cut off"
        got += part
    reader.close()
    assert len(got) > 12 * 2**20
    assert b"data: [DONE]" in got


def test_a_body_of_a_hundred_megabytes_is_refused_and_not_kept(served: tuple[Server, Torrent]) -> None:
    server = served[0]
    before = peak = server.memory

    def chunks() -> Iterator[bytes]:
        nonlocal peak
        yield b'{"model":"tiny","prompt":"'
        for _ in range(100):
            yield b"x" * 2**20
            peak = max(peak, server.memory)
        yield b'"}'

    answer = httpx.post(
        f"{server.url}{CHAT}", content=chunks(), headers={"content-type": "application/json"}, timeout=30
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert peak - before < 60, "32 MiB are the limit"


@pytest.mark.anyio
async def test_heads_of_requests_must_come_in_time_and_be_small(
    store: Store, data: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_HEAD_SECONDS", 0.5)
    settings = Settings(data_dir=data.path, base=[f"{BASE}=/"])
    web = web_server(build(settings, store)[0].app, settings.server)
    web.config.lifespan = "off"
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    half = b"GET /health HTTP/1.1\r\nA: "

    listener = sockets.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    serving = asyncio.create_task(web.serve(sockets=[listener]))

    async def ended(*parts: bytes, pause: float = 0.0) -> float:
        """Seconds until the server ends a connection on which these parts were sent."""
        reader, writer = await asyncio.open_connection(*address)
        began = time.monotonic()
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause)
            async with asyncio.timeout(1.5):
                while await reader.read(65536):
                    pass
        except ConnectionError:
            pass
        except TimeoutError:
            return float("inf")
        finally:
            writer.close()
        return time.monotonic() - began

    nothing, dripping, second, huge, quiet = await asyncio.gather(
        ended(),
        ended(half, *[b"x"] * 12, pause=0.1),
        ended(whole + half),
        ended(half, *[b"x" * 65536] * 8),
        ended(whole),
    )
    for seconds in (nothing, dripping, second):
        assert 0.4 < seconds < 1.9
    assert huge < 0.4
    assert quiet == float("inf"), "between requests a connection may be quiet"
    web.should_exit = True
    await serving
