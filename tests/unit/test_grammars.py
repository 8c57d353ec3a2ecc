"""Grammars that an engine still compiles for requests that have ended: counted, and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fake_engine import Client, engine_at, gateway_for, say_hello, stream
from tunewright.api.gateway.grammars import has_grammar
from tunewright.api.gateway.proxy import Gateway, Relay
from tunewright.store.records import Engine
from tunewright.store.store import Store

pytestmark = pytest.mark.anyio

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
GUIDED: dict[str, Any] = {"response_format": {"type": "json_object"}}
MOST = 8


class Compiler:
    """An engine with one thread for grammars, which go on when their requests have ended; `go_on` ends them."""

    def __init__(self) -> None:
        self._thread = asyncio.Lock()
        self.go_on = asyncio.Event()
        self.compiling: list[asyncio.Task[None]] = []

    async def _compile(self, body: dict[str, Any]) -> None:
        async with self._thread:
            if "choice" not in body.get("structured_outputs", {}):
                await self.go_on.wait()

    async def answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not has_grammar(body):
            return await say_hello(request, body)
        task = asyncio.create_task(self._compile(body))
        self.compiling.append(task)
        await asyncio.shield(task)
        return await say_hello(request, body)


@asynccontextmanager
async def service(store: Store, socket: Path, **options: Any) -> AsyncIterator[tuple[Gateway, Compiler]]:
    compiler = Compiler()
    gateway = gateway_for(store, **options)
    async with engine_at(socket, compiler.answer):
        try:
            yield gateway, compiler
        finally:
            compiler.go_on.set()
            await gateway.close()


async def ask(gateway: Gateway, client: Client | None = None, path: str = CHAT, **body: Any) -> Client:
    client = client or Client()
    relay = Relay(gateway, path, {"model": "tiny", **body}, project="default")
    await asyncio.wait_for(relay({"type": "http"}, client.receive, client.send), 20)  # type: ignore[arg-type]
    return client


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_what_compiles_after_a_504_is_counted_and_more_is_refused_until_it_has_ended(
    store: Store, socket: Path, engine: Engine
) -> None:
    async with service(store, socket, request_timeout=0.5) as (gateway, compiler):
        timed_out = await asyncio.gather(*(ask(gateway, **GUIDED) for _ in range(MOST)))
        assert {client.status for client in timed_out} == {504}
        assert gateway.grammars.left[str(socket)] == MOST
        refused = await ask(gateway, **GUIDED)
        assert (refused.status, refused.error["code"]) == (429, "too_many_grammars")
        assert "retry-after" in refused.headers
        assert (await ask(gateway)).status == 200, "without a grammar it is answered"
        compiler.go_on.set()
        await until(lambda: not gateway.grammars.left)
        assert (await ask(gateway, **GUIDED)).status == 200


async def test_clients_that_leave_are_counted_too(store: Store, socket: Path, engine: Engine) -> None:
    async with service(store, socket) as (gateway, compiler):
        clients = [Client() for _ in range(MOST)]
        asked = [asyncio.create_task(ask(gateway, client, **GUIDED)) for client in clients]
        await until(lambda: len(compiler.compiling) == MOST)
        for client in clients:
            client.leaves.set()
        await asyncio.gather(*asked)
        assert (await ask(gateway, **GUIDED)).status == 429
        compiler.go_on.set()
        await until(lambda: not gateway.grammars.left)


async def test_what_was_answered_is_not_counted(store: Store, socket: Path, engine: Engine) -> None:
    async with service(store, socket) as (gateway, compiler):
        compiler.go_on.set()
        assert {(await ask(gateway, **GUIDED)).status for _ in range(2 * MOST)} == {200}
        assert not gateway.grammars.left


@pytest.mark.parametrize(
    ("path", "first", "is_compiled"),
    [
        (CHAT, b'data: {"choices":[]}\n\n', True),
        (RESPONSES, b'event: response.created\ndata: {"type":"response.created"}\n\n', False),
        (RESPONSES, b'event: response.output_item.added\ndata: {}\n\n', True),
    ],
)  # fmt: skip
async def test_a_stream_that_was_left_counts_only_before_the_model_wrote(
    store: Store, socket: Path, engine: Engine, path: str, first: bytes, is_compiled: bool
) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await stream(request, first)
        await asyncio.sleep(30)
        return response

    gateway, client = gateway_for(store), Client()
    async with engine_at(socket, handler):
        guided = GUIDED if path == CHAT else {"text": {"format": {"type": "json_schema", "schema": {}}}}
        asked = asyncio.create_task(ask(gateway, client, path, stream=True, **guided))
        await asyncio.wait_for(client.got_something.wait(), 5)
        client.leaves.set()
        await asked
        assert gateway.grammars.left[str(socket)] == (0 if is_compiled else 1)
        await gateway.close()


async def test_an_engine_that_was_started_again_compiles_nothing_of_before(
    store: Store, socket: Path, engine: Engine
) -> None:
    gateway = gateway_for(store, request_timeout=0.3)
    compiler = Compiler()
    async with engine_at(socket, compiler.answer):
        assert (await ask(gateway, **GUIDED)).status == 504
        compiler.go_on.set()
    socket.unlink(missing_ok=True)
    gateway.grammars.leave(await _target(gateway))
    assert gateway.grammars.left[str(socket)]
    async with engine_at(socket, say_hello):
        await until(lambda: not gateway.grammars.left)
    await gateway.close()


async def _target(gateway: Gateway) -> Any:
    with ExitStack() as held:
        return await gateway.router.find("tiny", held, project="default")


FUNCTION = {"name": "f", "parameters": {"type": "object"}}
STRICT = {**FUNCTION, "strict": True}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, False),
        ({"response_format": {"type": "text"}}, False),
        ({"response_format": {"type": "json_schema"}}, True),
        ({"structured_outputs": {"regex": "a"}}, True),
        ({"structured_outputs": None}, False),
        ({"text": {"format": {"type": "text"}}}, False),
        ({"text": {"format": {"type": "json_schema"}}}, True),
        ({"tools": [{"type": "function", "function": FUNCTION}]}, False),
        ({"tools": [{"type": "function", "function": STRICT}]}, True),
        ({"tools": [{"type": "function", "function": STRICT}], "tool_choice": "none"}, False),
        ({"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required"}, True),
        ({"tools": [{"type": "function", **STRICT}]}, True),
        ({"tools": [{"type": "namespace", "tools": [{"type": "function", **STRICT}]}]}, True),
        ({"tools": [], "tool_choice": "required"}, False),
        ({"tools": [7], "response_format": 7, "text": 7}, False),
    ],
)
async def test_which_requests_have_a_grammar(body: dict[str, Any], expected: bool) -> None:
    assert has_grammar(body) is expected
