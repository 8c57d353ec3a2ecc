"""Kept connections to an engine: what they make of its bytes, however these are cut, and when they are closed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.engine.connections import _MOST_UNREAD, Answer, Connection, ConnectionClosed, Pool

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
)
SHORT = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def pool_at(socket: Path, serve: Serve, keeps: float = 15.0) -> AsyncIterator[Pool]:
    server = await asyncio.start_unix_server(serve, str(socket))
    pool = Pool(str(socket), keeps, lambda error: None)
    try:
        yield pool
    finally:
        pool.close()
        server.close()


def answering(*answers: bytes) -> Serve:
    """Reads a request before each of the answers, and then closes the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):  # the other side closes first
            for answer in answers:
                await reader.readuntil(b"}")
                writer.write(answer)
        writer.close()

    return serve


async def asked(pool: Pool) -> tuple[int, bytes, Connection]:
    connection, answer = await pool.send("/v1/completions", b"{}")
    body = await answer.read()
    pool.give_back(connection)
    return answer.status, body, connection


async def test_the_request_is_complete_and_says_so(socket: Path) -> None:
    got = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal got
        got = await reader.readuntil(b"}")
        writer.write(SHORT)

    async with pool_at(socket, serve) as pool:
        connection, _ = await pool.send("/v1/completions", '{"prompt":"é"}'.encode())
        connection.close()
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /v1/completions HTTP/1.1", b"Host: engine", b"Content-Type: application/json", b"Content-Length: 15",
    ]  # fmt: skip
    assert body == '{"prompt":"é"}'.encode()


class Transport:
    """A transport to nowhere."""

    def __init__(self) -> None:
        self.paused = self.aborted = False

    def writelines(self, parts: object) -> None: ...

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def abort(self) -> None:
        self.aborted = True


async def received(pieces: list[bytes]) -> tuple[Connection, Answer, bytes]:
    connection = Connection()
    connection.connection_made(Transport())  # type: ignore[arg-type]
    sending = asyncio.create_task(connection.send("/", b"{}"))
    await asyncio.sleep(0)
    for piece in pieces:
        connection.data_received(piece)
    answer = await sending
    return connection, answer, await answer.read()


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(1, len(CHUNKED) - 1)))
async def test_an_answer_is_the_same_however_its_bytes_come(cuts: set[int]) -> None:
    bounds = [0, *sorted(cuts), len(CHUNKED)]
    connection, answer, body = await received([CHUNKED[a:b] for a, b in itertools.pairwise(bounds)])
    assert (answer.status, answer.content_type, body) == (200, "text/event-stream", b"hello world")
    assert connection.release()


async def test_a_connection_is_used_for_one_answer_after_another(socket: Path) -> None:
    async with pool_at(socket, answering(CHUNKED, SHORT, CHUNKED)) as pool:
        first, second, third = [await asked(pool) for _ in range(3)]
    assert [first[:2], second[:2], third[:2]] == [(200, b"hello world"), (400, b"no"), (200, b"hello world")]
    assert first[2] is second[2] is third[2]


async def test_an_interim_answer_is_passed_over(socket: Path) -> None:
    async with pool_at(socket, answering(b"HTTP/1.1 100 Continue\r\n\r\n" + SHORT)) as pool:
        assert (await asked(pool))[:2] == (400, b"no")


async def test_an_answer_without_a_length_ends_with_its_connection(socket: Path) -> None:
    async with pool_at(socket, answering(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it")) as pool:
        assert (await asked(pool))[:2] == (200, b"all of it")
        assert not pool._idle


@pytest.mark.parametrize("answer", [SHORT[:-1], CHUNKED[:-5], CHUNKED[:20], b""])
async def test_an_answer_that_is_cut_is_an_error(socket: Path, answer: bytes) -> None:
    async with pool_at(socket, answering(answer)) as pool:
        with pytest.raises(ConnectionClosed):
            await asked(pool)


async def test_what_was_sent_before_the_cut_is_still_read(socket: Path) -> None:
    async with pool_at(socket, answering(CHUNKED[:-5])) as pool:
        _, answer = await pool.send("/", b"{}")
        await asyncio.sleep(0.05)
        assert await answer.part() == b"hello world"
        with pytest.raises(ConnectionClosed):
            await answer.part()


async def test_what_is_no_http_is_an_error(socket: Path) -> None:
    async with pool_at(socket, answering(b"SSH-2.0-OpenSSH\r\n")) as pool:
        with pytest.raises(ConnectionClosed, match="no HTTP"):
            await asked(pool)


async def test_a_connection_with_a_half_read_answer_is_closed() -> None:
    connection, _, _ = await received([CHUNKED])
    half = Connection()
    transport = Transport()
    half.connection_made(transport)  # type: ignore[arg-type]
    sending = asyncio.create_task(half.send("/", b"{}"))
    await asyncio.sleep(0)
    half.data_received(CHUNKED[:-5])
    await sending
    assert connection.release()
    assert not half.release()
    assert transport.aborted


async def test_bytes_that_nobody_asked_for_end_a_connection() -> None:
    connection, _, _ = await received([CHUNKED])
    assert connection.release()
    connection.data_received(SHORT)
    assert not connection.is_open


async def test_an_answer_that_is_not_read_is_not_taken_from_the_socket() -> None:
    connection = Connection()
    transport = Transport()
    connection.connection_made(transport)  # type: ignore[arg-type]
    sending = asyncio.create_task(connection.send("/", b"{}"))
    await asyncio.sleep(0)
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + b"x" * _MOST_UNREAD)
    answer = await sending
    assert not transport.paused
    connection.data_received(b"x")
    assert transport.paused
    assert len(await answer.part()) == _MOST_UNREAD + 1
    assert not transport.paused


async def test_an_idle_connection_is_closed_in_time_and_not_used_again(socket: Path) -> None:
    async with pool_at(socket, answering(SHORT, SHORT), keeps=0.1) as pool:
        _, _, first = await asked(pool)
        async with asyncio.timeout(5):
            while first.is_open:
                await asyncio.sleep(0.01)
        assert not pool._idle
        assert (await asked(pool))[2] is not first
