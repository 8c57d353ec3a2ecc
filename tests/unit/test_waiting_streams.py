"""Streams that wait before the engine answers: they are kept open, and what fails then reaches the stock clients."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fake_engine import Client, Handler, engine_at, gateway_for, say_hello, stream
from rows import Publish, engine_info
from tunewright.api.gateway import reply
from tunewright.api.gateway.proxy import Gateway, Relay
from tunewright.store.records import Engine
from tunewright.store.states import EngineState
from tunewright.store.store import Store

pytestmark = pytest.mark.anyio

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "responses": "/v1/responses"}
CHAT = PATHS["chat"]
TUNED = "ft:tiny::1"
COMMENT = b": keep-alive\n\n"
OPENAI_2 = Path(sys.prefix) / "openai-2"
CHUNK = {
    "id": "1",
    "object": "chat.completion.chunk",
    "model": "m",
    "choices": [{"index": 0, "delta": {"content": "a"}}],
}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply, "_KEEP_ALIVE", 0.05)


@pytest.fixture
def busy(store: Store, socket: Path) -> Engine:
    """An engine that runs one sequence at a time."""
    store.engines.declare(["tiny"])
    started = store.engines.starting(
        "tiny", str(socket), engine_info(internal_name="base-" + "0" * 32, max_num_seqs=1)
    )
    store.engines.set_state("tiny", EngineState.READY)
    return started


@asynccontextmanager
async def held_by_another(gateway: Gateway) -> AsyncIterator[None]:
    """The engine's only place is taken by another caller."""
    first = Client()
    asking = asyncio.create_task(
        Relay(gateway, CHAT, {"model": "tiny", "wait": True}, project="default")(
            {"type": "http"}, first.receive, first.send
        )
    )
    while not gateway.router.in_flight["tiny"]:
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        first.leaves.set()
        await asking


async def wait(client: Client) -> None:
    """Until two comments have come."""
    async with asyncio.timeout(5):
        while sum(message.get("body") == COMMENT for message in client.messages) < 2:
            await asyncio.sleep(0.01)


async def ask_and_wait(
    store: Store, socket: Path, then: Handler, body: dict[str, Any], path: str = CHAT, **options: Any
) -> Client:
    """The client of a request that waits for its turn until it has got comments, and is answered by `then`."""

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if "wait" in body:
            await asyncio.sleep(60)
        return await then(request, body)

    gateway, client = gateway_for(store, **options), Client()
    async with engine_at(socket, handler):
        async with held_by_another(gateway):
            relay = Relay(gateway, path, {"model": "tiny", **body}, project="default")
            asking = asyncio.create_task(relay({"type": "http"}, client.receive, client.send))
            await wait(client)
        async with asyncio.timeout(5):
            await asking
        await gateway.close()
    return client


def decoded(body: bytes, api: str, major: str) -> Any:
    """What the stock client of this version makes of the stream."""
    environment = dict(os.environ)
    if major == "2":
        assert OPENAI_2.is_dir(), "openai 2.x is missing: run `make setup`"
        environment["PYTHONPATH"] = str(OPENAI_2)
    script = Path(__file__).parent / "openai_decodes.py"
    done = subprocess.run(
        [sys.executable, str(script), api],
        env=environment,
        input=body,
        capture_output=True,
        timeout=60,
        check=True,
    )
    version, _, found = done.stdout.decode().partition(" ")
    assert version.startswith(f"{major}.")
    return json.loads(found)


async def tell(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    event = (
        b"data: " + json.dumps({**CHUNK, "model": body["model"]}, separators=(",", ":")).encode() + b"\n\n"
    )
    return await stream(request, event, b"data: [DONE]\n\n")


async def refuse(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response({"error": {"message": "too long", "param": "messages", "code": 400}}, status=400)


async def test_a_stream_that_waits_for_its_turn_is_kept_open(
    store: Store, socket: Path, busy: Engine
) -> None:
    client = await ask_and_wait(store, socket, tell, {"messages": [], "stream": True})
    assert (client.status, client.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert client.headers["x-tunewright-model"] == "tiny"
    assert client.body.startswith(COMMENT * 2)
    assert client.body.replace(COMMENT, b"").endswith(b"data: [DONE]\n\n")
    for major in ("3", "2"):
        found = decoded(client.body, "chat", major)
        assert found["error"] is None
        assert [event["choices"][0]["delta"]["content"] for event in found["events"]] == ["a"]
        assert found["events"][0]["model"] == "tiny"


@pytest.mark.parametrize("api", PATHS)
async def test_an_error_after_the_wait_is_raised_by_the_stock_clients(
    store: Store, socket: Path, busy: Engine, api: str
) -> None:
    client = await ask_and_wait(store, socket, refuse, {"stream": True}, PATHS[api])
    assert client.status == 200, "the head was sent while it waited"
    for major in ("3", "2"):
        found = decoded(client.body, api, major)
        assert found["events"] == []
        assert found["error"] == {
            "class": "APIError",
            "message": "too long",
            "code": "invalid_value",
            "type": "invalid_request_error",
        }


async def test_a_response_that_fails_has_the_event_of_openais_reference(
    store: Store, socket: Path, busy: Engine
) -> None:
    client = await ask_and_wait(store, socket, refuse, {"stream": True}, PATHS["responses"])
    name, data = client.body.replace(COMMENT, b"").decode().strip().split("\n")
    assert name == "event: error"
    error = json.loads(data.removeprefix("data: "))
    assert (error["type"], error["code"], error["message"]) == ("error", "invalid_value", "too long")


async def test_the_time_limit_of_a_stream_that_waits_is_told_within_it(
    store: Store, socket: Path, busy: Engine
) -> None:
    gateway, client = gateway_for(store), Client()

    async def never(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    async with engine_at(socket, never), held_by_another(gateway):
        gateway.request_timeout = 0.3
        relay = Relay(gateway, CHAT, {"model": "tiny", "stream": True}, project="default")
        async with asyncio.timeout(5):
            await relay({"type": "http"}, client.receive, client.send)
    await gateway.close()
    assert COMMENT in client.body
    assert json.loads(client.body.replace(COMMENT, b"")[6:])["error"]["code"] == "request_timeout"


async def test_a_stream_that_waits_for_its_adapter_is_kept_open(
    store: Store, socket: Path, engine: Engine, publish_model: Publish
) -> None:
    publish_model({})
    loaded = asyncio.Event()

    async def load(operation: dict[str, Any]) -> dict[str, Any]:
        await loaded.wait()
        return {"error": "it is broken"}

    gateway, client = gateway_for(store, load=load), Client()
    async with engine_at(socket, say_hello):
        relay = Relay(gateway, CHAT, {"model": TUNED, "stream": True}, project="default")
        asking = asyncio.create_task(relay({"type": "http"}, client.receive, client.send))
        await wait(client)
        loaded.set()
        await asking
    await gateway.close()
    assert client.headers["x-tunewright-model"] == TUNED
    assert json.loads(client.body.replace(COMMENT, b"")[6:])["error"]["code"] == "load_failed"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "nobody"}, 404, "model_not_found"),
        ({"model": "tiny"}, 400, "invalid_value"),
    ],
)
async def test_what_fails_at_once_has_its_own_status(
    store: Store, socket: Path, engine: Engine, body: dict[str, Any], status: int, code: str
) -> None:
    gateway, client = gateway_for(store), Client()
    async with engine_at(socket, refuse):
        relay = Relay(gateway, PATHS["completions"], {**body, "stream": True}, project="default")
        await relay({"type": "http"}, client.receive, client.send)
    await gateway.close()
    assert (client.status, client.error["code"]) == (status, code)


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, {}), (CHAT, {"stream": False}), ("/v1/embeddings", {"stream": True})]
)
async def test_what_is_no_stream_waits_for_its_own_status(
    store: Store, socket: Path, engine: Engine, path: str, body: dict[str, Any]
) -> None:
    async def late(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.2)
        return await refuse(request, body)

    gateway, client = gateway_for(store), Client()
    async with engine_at(socket, late):
        await Relay(gateway, path, {"model": "tiny", **body}, project="default")(
            {"type": "http"}, client.receive, client.send
        )
    await gateway.close()
    assert (client.status, client.error["message"]) == (400, "too long")


async def test_a_client_that_leaves_while_it_waits_gives_its_turn_to_others(
    store: Store, socket: Path, busy: Engine
) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if "wait" in body:
            await asyncio.sleep(60)
        return await tell(request, body)

    gateway, gone, after = gateway_for(store), Client(), Client()
    body = {"model": "tiny", "messages": [], "stream": True}
    async with engine_at(socket, handler) as fake:
        async with held_by_another(gateway):
            leaving = asyncio.create_task(
                Relay(gateway, CHAT, {**body, "gone": True}, project="default")(
                    {"type": "http"}, gone.receive, gone.send
                )
            )
            await wait(gone)
            gone.leaves.set()
            await leaving
        async with asyncio.timeout(5):
            await Relay(gateway, CHAT, body, project="default")({"type": "http"}, after.receive, after.send)
        await gateway.close()
    assert after.body.endswith(b"data: [DONE]\n\n")
    assert not any("gone" in body for _, body in fake.seen)
    assert gateway.router.in_flight == {"tiny": 0}
