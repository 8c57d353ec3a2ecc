"""Requests to an engine: the result of a request whose connection closes, and how vLLM's errors are read."""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import socket as sockets
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fake_engine import Client, engine_at, gateway_for
from tunewright.api.gateway.proxy import Relay
from tunewright.engine import http
from tunewright.engine.client import probe
from tunewright.engine.command import SERVER_KEEPS, engine_environment
from tunewright.engine.http import (
    EngineBusy,
    EngineError,
    EngineHTTP,
    EngineRefused,
    EngineUnwell,
    read_error,
)
from tunewright.store.records import Engine
from tunewright.store.store import Store

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

PATH = "/v1/completions"
BODY = b'{"model": "m"}'
WHOLE = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"text": 1}'
HALF_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: appl"
HALF_BODY = WHOLE[:-4]


class Connections:
    """A server on a unix socket that answers the first request on each connection and keeps that open, unasked.

    `later` is called with the connection when a further request comes on it; then the connection is closed.
    """

    def __init__(self, path: Path, later: Callable[[Connections, sockets.socket], None]) -> None:
        self._path, self._later = path, later
        self.requests = 0
        """The number of requests that it has read."""
        self.open: list[sockets.socket] = []
        self.answers = WHOLE
        self._listening = sockets.socket(sockets.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: sockets.socket) -> None:
        with suppress(OSError, ValueError):  # closed meanwhile
            self.read(connection)
            if self.answers:
                connection.sendall(self.answers)
                select.select([connection], [], [])
                self._later(self, connection)
        self.shut(connection)

    def read(self, connection: sockets.socket) -> None:
        data = b""
        while not data.endswith(b"}"):
            data += connection.recv(65536)
        self.requests += 1

    def shut(self, connection: sockets.socket) -> None:
        with suppress(OSError):
            connection.shutdown(sockets.SHUT_RDWR)
        connection.close()

    def close_all(self) -> None:
        for connection in self.open:
            self.shut(connection)

    def end(self) -> None:
        """Ends like an engine that is killed."""
        self._listening.close()
        self._path.unlink(missing_ok=True)
        self.close_all()


def close_unread(server: Connections, connection: sockets.socket) -> None:
    """The close of an idle connection crosses with a request."""


@pytest.fixture
async def http_client(socket: Path) -> AsyncIterator[EngineHTTP]:
    async with EngineHTTP(str(socket)) as client:
        yield client


async def ask(client: EngineHTTP) -> bytes:
    async with client.post(PATH, BODY) as answer:
        assert answer.status == 200
        return await answer.read()


@contextmanager
def serving(socket: Path, later: Callable[[Connections, sockets.socket], None]) -> Iterator[Connections]:
    server = Connections(socket, later)
    try:
        yield server
    finally:
        server.end()


async def test_a_connection_is_used_again(socket: Path, http_client: EngineHTTP) -> None:
    def answer(server: Connections, connection: sockets.socket) -> None:
        server.read(connection)
        connection.sendall(WHOLE)
        select.select([connection], [], [], 5)

    with serving(socket, answer) as server:
        await ask(http_client)
        await ask(http_client)
        assert (server.requests, len(server.open)) == (2, 1)


async def test_a_request_that_meets_the_close_of_an_idle_connection_is_answered(
    socket: Path, http_client: EngineHTTP
) -> None:
    """The server closes when the request arrives, without reading it: the reader gets a reset."""
    with serving(socket, close_unread) as server:
        await ask(http_client)
        assert await ask(http_client) == b'{"text": 1}'
        assert (server.requests, len(server.open)) == (2, 2)


async def test_a_request_written_to_a_connection_that_was_just_closed_is_answered(
    socket: Path, http_client: EngineHTTP
) -> None:
    """All of many idle connections are closed while the event loop is busy: a broken pipe when it writes."""
    with serving(socket, close_unread) as server:
        await asyncio.gather(*(ask(http_client) for _ in range(8)))
        server.close_all()  # without a turn of the event loop between this and the requests
        assert await asyncio.gather(*(ask(http_client) for _ in range(8))) == [b'{"text": 1}'] * 8
        assert server.requests == 16


async def test_a_new_connection_that_breaks_is_not_asked_again(socket: Path, http_client: EngineHTTP) -> None:
    """It was not idle, so the engine has read the request or has ended: which is not known."""
    with serving(socket, close_unread) as server:
        server.answers = b""
        with pytest.raises(EngineBusy, match="does not answer"):
            await ask(http_client)
        assert server.requests == 1


async def test_an_engine_that_ended_meanwhile_does_not_answer(socket: Path, http_client: EngineHTTP) -> None:
    with serving(socket, close_unread) as server:
        await ask(http_client)
        server.end()
        with pytest.raises(EngineBusy, match="does not answer"):
            await ask(http_client)
        assert server.requests == 1


@pytest.mark.parametrize("begun", [HALF_HEAD, HALF_BODY], ids=["head", "body"])
async def test_an_answer_that_has_begun_is_not_asked_for_again(
    socket: Path, http_client: EngineHTTP, begun: bytes
) -> None:
    def answer(server: Connections, connection: sockets.socket) -> None:
        server.read(connection)
        connection.sendall(begun)

    with serving(socket, answer) as server:
        await ask(http_client)
        with pytest.raises(EngineBusy, match="does not answer"):
            await ask(http_client)
        assert (server.requests, len(server.open)) == (2, 1)


@pytest.mark.parametrize("breaks", [1, 2])
async def test_a_generation_is_asked_for_at_most_twice(
    socket: Path, http_client: EngineHTTP, breaks: int
) -> None:
    """The new connection may break too, which says more than that the old one was idle."""

    def refuse(server: Connections, connection: sockets.socket) -> None:
        server.answers = b"" if breaks == 2 else WHOLE

    answered: bytes | None = None
    with serving(socket, refuse) as server:
        await ask(http_client)
        with suppress(EngineBusy):
            answered = await ask(http_client)
        assert answered == (b'{"text": 1}' if breaks == 1 else None)
        assert len(server.open) == 2


async def test_control_does_not_use_connections_again(socket: Path, http_client: EngineHTTP) -> None:
    with serving(socket, close_unread) as server:
        await http_client.request("POST", PATH, json.loads(BODY))
        assert await http_client.request("POST", PATH, json.loads(BODY)) == {"text": 1}
        assert len(server.open) == 2


async def test_the_gateway_gives_the_answer_where_the_engine_closed_an_idle_connection(
    store: Store, socket: Path, engine: Engine
) -> None:
    gateway = gateway_for(store)
    statuses = []
    with serving(socket, close_unread):
        try:
            for _ in range(3):
                client = Client()
                relay = Relay(gateway, PATH, {"model": engine.name}, project="default")
                await asyncio.wait_for(relay({"type": "http"}, client.receive, client.send), 20)
                statuses.append(client.status)
        finally:
            await gateway.close()
    assert statuses == [200, 200, 200]


def test_engines_keep_idle_connections_much_longer_than_the_gateway() -> None:
    """So that the gateway closes first; vLLM's own 5 s would be less than its 15 s."""
    asked = float(engine_environment("cpu")["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"])
    assert asked == SERVER_KEEPS
    assert asked >= 2 * http._POOL_KEEPS


async def test_no_request_of_a_burst_fails_when_uvicorn_closes_idle_connections(
    socket: Path, http_client: EngineHTTP
) -> None:
    """A short form of `make soak-bursts`, on vLLM's web server, which closes after a second here."""
    fakes = Path(__file__).parents[1] / "fakes_uvicorn"
    environment = {**os.environ, "PYTHONPATH": str(fakes), "FAKE_VLLM_KEEP_ALIVE": "1"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--served-model-name", "m"]
    server = subprocess.Popen([*command, "--uds", str(socket)], env=environment)
    chance = random.Random(0)
    answers = []
    try:
        deadline = time.monotonic() + 30
        while await asyncio.to_thread(probe, socket) is None:
            assert time.monotonic() < deadline, "it starts"
            time.sleep(0.05)
        for _ in range(5):
            answers += await asyncio.gather(*(ask(http_client) for _ in range(128)))
            await asyncio.sleep(chance.uniform(0.9, 1.0))
            time.sleep(0.1)  # an event loop that is busy meets the close
    finally:
        server.terminate()
        server.wait()
    assert len(answers) == 5 * 128
    assert all(b"Arr!" in answer for answer in answers)


# errors


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, EngineRefused), (404, EngineRefused), (429, EngineBusy), (503, EngineUnwell), (500, EngineError)],
)
async def test_an_error_says_whether_to_ask_again(
    socket: Path, status: int, error: type[EngineError]
) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "it is so"}}, status=status)

    async with engine_at(socket, handler), EngineHTTP(str(socket)) as engine:
        with pytest.raises(EngineError, match=r"^it is so$") as raised:
            await engine.request("POST", PATH, {})
    assert type(raised.value) is error


async def test_an_engine_that_is_not_there_or_too_slow_is_busy(socket: Path) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(10)
        return web.Response()

    async with EngineHTTP(str(socket), timeout=0.05) as engine:
        with pytest.raises(EngineBusy, match="does not answer"):
            await engine.request("GET", "/health")
        async with engine_at(socket, handler):
            with pytest.raises(EngineBusy, match="does not answer"):
                await engine.request("POST", PATH, {})
    assert await asyncio.to_thread(probe, socket) is None


@pytest.mark.parametrize(
    ("text", "message", "param"),
    [
        ('{"error": {"message": "too long", "param": "prompt"}}', "too long", "prompt"),
        ('{"message": "too long", "param": null}', "too long", None),
        ('{"error": "it broke"}', "it broke", None),
        ('{"detail": "Not Found"}', "Not Found", None),
        ("Internal Server Error", "Internal Server Error", None),
        ("[1]", "[1]", None),
        ("", "HTTP 500", None),
        ("{}", "HTTP 500", None),
    ],
)
def test_vllms_errors_are_read_in_all_their_forms(text: str, message: str, param: str | None) -> None:
    assert read_error(500, text.encode()) == (message, param)
