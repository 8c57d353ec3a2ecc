"""A stand-in for vLLM on a unix socket, for tests of the gateway, and a client that receives an ASGI response."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from tunewright.api.gateway.parameters import PARAMETERS
from tunewright.api.gateway.proxy import Gateway
from tunewright.api.gateway.routing import Load, Router
from tunewright.store.store import Store

_OF_TESTS = frozenset({"name", "what", "wait", "gone"})
"""What handlers of tests take from a body."""
PARAMETERS.update({path: names | _OF_TESTS for path, names in PARAMETERS.items()})

Handler = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class FakeEngine:
    """Answers with `handler`. `seen` has the path and the body of each request."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.aborted = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append((request.path, body))
        try:
            return await self._handler(request, body)
        except asyncio.CancelledError:
            self.aborted.set()
            raise

    async def look(self, request: web.Request) -> web.StreamResponse:
        return await self._handler(request, {})


@asynccontextmanager
async def engine_at(socket: Path, handler: Handler) -> AsyncIterator[FakeEngine]:
    fake = FakeEngine(handler)
    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_post("/{path:.*}", fake.answer)
    app.router.add_get("/{path:.*}", fake.look)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    try:
        yield fake
    finally:
        await runner.cleanup()


async def stream(request: web.Request, *chunks: bytes) -> web.StreamResponse:
    """Begins a stream of server-sent events."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    for chunk in chunks:
        await response.write(chunk)
    return response


async def say_hello(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    text = json.dumps({"model": body["model"], "content": "hello"}, separators=(",", ":"))
    return web.Response(text=text, content_type="application/json")


def gateway_for(
    store: Store,
    *,
    request_timeout: float = 600.0,
    load: Load | None = None,
    most_names: int = 100,
    **limits: Any,
) -> Gateway:
    """The gateway on this store. Where a request asks for an adapter to be loaded, `load` is called."""

    async def refuse(operation: dict[str, Any]) -> dict[str, Any]:
        return {"error": "nothing loads here"}

    folder = Path(store.database.url.removeprefix("sqlite:///")).parent / "run" / "leases"
    router = Router(store, folder, load or refuse, **limits)
    return Gateway(router, store, request_timeout=request_timeout, most_names=most_names)


class Client:
    """The client of an ASGI application: it receives the response and may leave."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.leaves = asyncio.Event()
        self.got_something = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.messages.append(message)
        if message.get("body"):
            self.got_something.set()

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {key.decode(): value.decode() for key, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        assert [m["type"] for m in self.messages[1:]] == ["http.response.body"] * (len(self.messages) - 1)
        assert not self.messages[-1].get("more_body"), "the response must be ended"
        assert all(m.get("more_body") for m in self.messages[1:-1]), "and ended once"
        return b"".join(m.get("body", b"") for m in self.messages[1:])

    @property
    def error(self) -> dict[str, Any]:
        return dict(json.loads(self.body)["error"])
