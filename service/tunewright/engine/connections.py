"""Kept HTTP/1.1 connections to a vLLM server on a unix socket, for generations.

They do what generations need and no more: one request at a time, a JSON body of known length, and an answer that is
read as it arrives. A request through aiohttp takes several times the processor time, and each event of a stream twice
(docs/decisions/0034). httptools, which uvicorn has too, parses the answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import httptools

_CONNECT_TIMEOUT = 10.0
_MOST_UNREAD = 2**18
"""Bytes of an answer from which on no more is read from the socket, until the reader has taken them."""


class ConnectionClosed(ConnectionError):
    """The server closed the connection before its answer was complete, or what it sent is no HTTP."""


class Answer:
    """An answer, whose head has arrived. Names of headers are in lower case."""

    def __init__(self, connection: Connection, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self.headers = headers
        self.part = connection.part
        """What has arrived of the body since the last call, at least a byte; empty at its end. Raises
        ConnectionClosed."""

    @property
    def content_type(self) -> str:
        """The type alone, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def read(self) -> bytes:
        """The rest of the body. Raises ConnectionClosed."""
        parts = []
        while part := await self.part():
            parts.append(part)
        return b"".join(parts)


class Connection(asyncio.Protocol):
    """One connection, which takes a request when the answer to the last one is complete."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser: Any = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._error: ConnectionClosed | None = None
        self._in_use = False
        self._has_head = self._is_complete = self._keeps = False
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._unread = 0
        self._paused = False
        self.has_begun = False
        """A byte of the answer to the last request has arrived."""
        self.idle_since = 0.0
        """Time of the loop at which the last answer was complete."""

    @property
    def is_open(self) -> bool:
        return self._error is None

    async def send(self, path: str, data: bytes, headers: bytes = b"") -> Answer:
        """Send a request, with further lines of its head, and return its answer when the head has arrived. Raises
        ConnectionClosed."""
        self._in_use = True
        self._has_head = self._is_complete = self._keeps = self.has_begun = False
        self._headers = {}
        if self._error is not None:
            raise self._error
        assert self._transport is not None, "it is connected"
        self._transport.writelines((_head(path, len(data)), headers, b"\r\n", data))
        while not self._has_head:
            await self._wait()
        return Answer(self, self._parser.get_status_code(), self._headers)

    async def part(self) -> bytes:
        while not self._parts:
            if self._is_complete:
                return b""
            await self._wait()
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._unread = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    def release(self) -> bool:
        """End the use by a request. Whether another one may use the connection; else it is closed, which aborts the
        request in vLLM."""
        if self._is_complete and self._keeps and self._error is None:
            self._in_use = False
            self._parts.clear()
            self._unread = 0
            if self._paused and self._transport is not None:
                self._paused = False
                self._transport.resume_reading()
            self.idle_since = self._loop.time()
            return True
        self.close()
        return False

    def close(self) -> None:
        self._fail("closed")
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        """Until something has arrived. Raises ConnectionClosed."""
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, why: str) -> None:
        if self._error is None:
            self._error = ConnectionClosed(why)
        self._wake()

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if not self._in_use or self._is_complete:
            self.close()  # nothing was asked
            return
        self.has_begun = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"its answer is no HTTP: {error!r}")
            self.close()
            return
        if self._unread > _MOST_UNREAD and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        if self._has_head and not self._is_complete and error is None and self._ends_with_connection():
            self._is_complete = True
        self._fail(f"the connection was closed ({error!r})" if error else "the connection was closed")

    def _ends_with_connection(self) -> bool:
        return "content-length" not in self._headers and "transfer-encoding" not in self._headers

    # the parser's callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._parser.get_status_code() < 200:  # an interim answer: the head of the answer follows
            self._headers = {}
        else:
            self._has_head = True

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        self._unread += len(body)

    def on_message_complete(self) -> None:
        if self._has_head:
            self._is_complete = True
            self._keeps = self._parser.should_keep_alive()


class Pool:
    """The connections to one socket: used ones are kept for `keeps` seconds. Used from one event loop only."""

    def __init__(self, socket: str, keeps: float, on_retry: Callable[[Exception], None]) -> None:
        self._socket = socket
        self._keeps = keeps
        self._on_retry = on_retry
        self._idle: list[Connection] = []
        self._sweep: asyncio.TimerHandle | None = None

    async def send(self, path: str, data: bytes, headers: bytes = b"") -> tuple[Connection, Answer]:
        """Send on a kept connection, if there is one; where the server has closed it, once more on a new one.

        A server closes idle connections, and may do so at the moment when a request is sent. Then no part of an answer
        arrives. A server that has read a request closes the connection without an answer only where the engine ends,
        and then it refuses the new connection. So no generation is made twice. A new connection cannot fail for having
        been idle, so its errors are raised to the caller. Raises ConnectionError, OSError and TimeoutError.
        """
        kept = self._take()
        if kept is not None:
            try:
                return kept, await _send(kept, path, data, headers)
            except ConnectionClosed as error:
                if kept.has_begun:
                    raise
                self._on_retry(error)
        new = await self._connect()
        return new, await _send(new, path, data, headers)

    def give_back(self, connection: Connection) -> None:
        if connection.release():
            self._idle.append(connection)
            if self._sweep is None:
                self._sweep = asyncio.get_running_loop().call_later(self._keeps, self._close_idle)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _take(self) -> Connection | None:
        """The connection that was used last, if it is not too old."""
        oldest = asyncio.get_running_loop().time() - self._keeps
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and connection.idle_since > oldest:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_CONNECT_TIMEOUT):
            _, connection = await loop.create_unix_connection(Connection, self._socket)
        return connection

    def _close_idle(self) -> None:
        now = asyncio.get_running_loop().time()
        fresh = [one for one in self._idle if one.is_open and one.idle_since > now - self._keeps]
        for connection in self._idle:
            if connection not in fresh:
                connection.close()
        self._idle = fresh
        self._sweep = None
        if fresh:
            wait = fresh[0].idle_since + self._keeps - now
            self._sweep = asyncio.get_running_loop().call_later(wait, self._close_idle)


async def _send(connection: Connection, path: str, data: bytes, headers: bytes) -> Answer:
    try:
        return await connection.send(path, data, headers)
    except BaseException:
        connection.close()
        raise


def _head(path: str, length: int) -> bytes:
    """The head of a request, but for the blank line at its end."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: engine\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    ).encode()
