"""The api stops while clients connect: who was let in is answered."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from fastapi import FastAPI

from tunewright.api.http.process import web_server
from tunewright.config import ServerOptions

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[uvicorn.Server, tuple[str, int]]]:
    app = FastAPI()

    @app.get("/health")
    def health() -> str:
        return "healthy"

    web = web_server(app, ServerOptions())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        running = asyncio.create_task(web.serve(sockets=[listener]))
        yield web, address
        web.should_exit = True
        await running


async def accepted(web: uvicorn.Server, address: tuple[str, int]) -> Streams:
    """A connection that the server knows."""
    known = len(web.server_state.connections)
    streams = await asyncio.open_connection(*address)
    while len(web.server_state.connections) == known:
        await asyncio.sleep(0.001)
    return streams


async def stopping(web: uvicorn.Server) -> None:
    """The server accepts no more."""
    web.should_exit = True
    while not web.servers or any(server.is_serving() for server in web.servers):
        await asyncio.sleep(0.001)


async def answer(streams: Streams) -> bytes:
    reader, writer = streams
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_a_request_that_comes_just_after_the_stop_is_answered() -> None:
    async with serving() as (web, address):
        new, half, quiet, idle = [await accepted(web, address) for _ in range(4)]
        half[1].write(REQUEST[:20])
        idle[1].write(REQUEST)
        assert (await idle[0].readuntil(b'"healthy"')).startswith(b"HTTP/1.1 200 ")
        began = time.monotonic()
        await stopping(web)
        assert await answer(idle) == b""
        assert time.monotonic() - began < 0.7, "nothing was under way on it"
        await asyncio.sleep(0.2)
        new[1].write(REQUEST)
        half[1].write(REQUEST[20:])
        for streams in (new, half):
            got = await answer(streams)
            assert got.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close" in got.lower()
        assert await answer(quiet) == b""
        assert 0.7 < time.monotonic() - began < 3, "one that asks for nothing holds it up for a second"


async def test_a_second_request_in_the_kernel_is_answered() -> None:
    """Sent on an idle connection while the loop was busy with its stop."""
    async with serving() as (web, address):
        streams = await accepted(web, address)
        streams[1].write(REQUEST)
        await streams[0].readuntil(b'"healthy"')
        (connection,) = web.server_state.connections
        raw = streams[1].get_extra_info("socket")
        socket.socket.send(raw._sock, REQUEST)  # at once, before the server's loop can read it
        connection.shutdown()
        got = await answer(streams)
        assert got.startswith(b"HTTP/1.1 200 ")
