"""HTTP requests to a vLLM server over its unix socket: connections, timeouts, errors. All requests to engines are made
here.

Control requests (`EngineHTTP.request`) send JSON, each on a new connection. Generations (`EngineHTTP.post`) use
connections that are kept open. Both use aiohttp, which generations need for its speed (docs/decisions/0001).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Self
from weakref import WeakSet

import aiohttp
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

log = logging.getLogger("tunewright.engine")

SERVER_KEEPS = 75
"""Seconds for which vLLM keeps an idle connection, as `command.engine_environment` sets it (its default is 5)."""
_POOL_KEEPS = 15.0
"""Seconds for which an idle connection is reused. Far less than `SERVER_KEEPS`, so that this side closes first, and no
request is sent while the server closes the connection."""
_CONNECT_TIMEOUT = 10.0
_CONTROL_TIMEOUT = 120.0
_JSON = {"Content-Type": "application/json"}

Answer = aiohttp.ClientResponse
"""The result of `EngineHTTP.post`: status and headers have been received, the body is read as it arrives."""


class EngineError(Exception):
    """vLLM failed while it handled a request, or did not do what it answered; the message is vLLM's."""


class EngineBusy(EngineError):
    """vLLM does not answer, or answers that it cannot handle the request now: try again."""


class EngineUnwell(EngineBusy):
    """vLLM's server answers 503: its engine cannot handle requests."""


class EngineRefused(EngineError):
    """vLLM refuses the request as invalid."""


_was_used: ContextVar[bool] = ContextVar("was_used")
"""Whether the connection of this task's request was used by an earlier request."""


class _Pool(aiohttp.UnixConnector):
    """A connector that sets `_was_used`. (aiohttp's tracing has the same information, but makes each request a third
    slower.)"""

    def __init__(self, path: str, **options: Any) -> None:
        super().__init__(path, **options)
        self._seen: WeakSet[object] = WeakSet()

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        _was_used.set(connection.protocol in self._seen)
        self._seen.add(connection.protocol)
        return connection


class EngineHTTP:
    """Requests to one vLLM server. Use it in one event loop, as an async context manager, or `close` it.

    `timeout`: seconds that one `request` may take; a `post` has no limit of its own.
    """

    def __init__(self, socket: str, timeout: float = _CONTROL_TIMEOUT) -> None:
        self.socket = socket
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=_CONNECT_TIMEOUT)
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    async def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON value of the answer; if it is not JSON, its text, or None where it is empty.

        Raises EngineBusy, EngineRefused, and EngineError where vLLM fails.
        """
        try:
            async with self._session(keep=False).request(
                method, _url(path), json=body, timeout=self._timeout
            ) as response:
                text = await response.read()
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            raise _no_answer(error) from error
        _raise_for(response.status, text)
        try:
            return json.loads(text)
        except ValueError:
            return text.decode(errors="replace") or None

    @asynccontextmanager
    async def post(self, path: str, data: bytes) -> AsyncIterator[Answer]:
        """The answer to a JSON body, of any status, as soon as its headers have arrived. Leaving the block before the
        answer is complete closes the connection, which aborts the request in vLLM.

        Raises EngineBusy where there is no answer, or an incomplete one.
        """
        try:
            async with await self._send(path, data) as response:
                yield response
        except (aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError) as error:
            raise _no_answer(error) from error

    async def _send(self, path: str, data: bytes) -> Answer:
        """Send on a kept connection, if there is one; where the server has closed it, once more on a new one.

        A server closes idle connections, and may do so at the moment when a request is sent. Then no part of an answer
        arrives. A server that has read a request closes the connection without an answer only where the engine ends,
        and then it refuses the new connection. So no generation is made twice. A new connection cannot fail for having
        been idle, so its errors are raised to the caller.
        """
        _was_used.set(False)
        try:
            return await self._session(keep=True).post(_url(path), data=data, headers=_JSON)
        except aiohttp.ClientConnectionError as error:
            if not _was_used.get() or _has_begun(error):
                raise
            log.debug("engine at %s closed an idle connection (%r): using a new one", self.socket, error)
        return await self._session(keep=False).post(_url(path), data=data, headers=_JSON)

    def _session(self, *, keep: bool) -> aiohttp.ClientSession:
        """The session, made on first use in the event loop that uses it. `keep`: its connections are kept open."""
        session = self._sessions.get(keep)
        if session is None:
            session = self._sessions[keep] = aiohttp.ClientSession(
                connector=_Pool(path=self.socket, limit=0, keepalive_timeout=_POOL_KEEPS)
                if keep
                else aiohttp.UnixConnector(path=self.socket, limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT),
                auto_decompress=False,
                read_bufsize=1 << 18,
            )
        return session


def read_error(status: int, text: bytes) -> tuple[str, str | None]:
    """The message of a vLLM error, and the parameter that it names, if any."""
    param = None
    try:
        body = json.loads(text)
        error = body.get("error", body)
        message = error if isinstance(error, str) else error.get("message") or error.get("detail")
        param = None if isinstance(error, str) else error.get("param")
    except (ValueError, AttributeError):
        message = text.decode(errors="replace")[:500]
    return str(message or f"HTTP {status}"), str(param) if param else None


def _raise_for(status: int, text: bytes) -> None:
    if status < 400:
        return
    message, _ = read_error(status, text)
    if status in (429, 503):
        raise (EngineUnwell if status == 503 else EngineBusy)(message)
    raise (EngineError if status >= 500 else EngineRefused)(message)


def _no_answer(error: Exception) -> EngineBusy:
    return EngineBusy(f"the engine does not answer: {type(error).__name__} {error}")


def _has_begun(error: aiohttp.ClientConnectionError) -> bool:
    """Whether part of the answer's head had arrived when the connection was closed."""
    return isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str)


def _url(path: str) -> str:
    return f"http://engine{path}"
