"""HTTP requests to a vLLM server over its unix socket: connections, timeouts, errors. All requests to engines are made
here.

Control requests (`EngineHTTP.request`) send JSON with aiohttp, each on a new connection. Generations
(`EngineHTTP.post`) use connections of our own that are kept open (`engine.connections`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

import aiohttp

from tunewright.engine.connections import Answer, ConnectionClosed, Pool

log = logging.getLogger("tunewright.engine")

_POOL_KEEPS = 15.0
"""Seconds for which an idle connection is reused. Far less than `command.SERVER_KEEPS`, so that this side closes first,
and no request is sent while the server closes the connection."""
_CONNECT_TIMEOUT = 10.0
_CONTROL_TIMEOUT = 120.0


class EngineError(Exception):
    """vLLM failed while it handled a request, or did not do what it answered; the message is vLLM's."""


class EngineBusy(EngineError):
    """vLLM does not answer, or answers that it cannot handle the request now: try again."""


class EngineUnwell(EngineBusy):
    """vLLM's server answers 503: its engine cannot handle requests."""


class EngineRefused(EngineError):
    """vLLM refuses the request as invalid."""


class EngineHTTP:
    """Requests to one vLLM server. Use it in one event loop, as an async context manager, or `close` it.

    `timeout`: seconds that one `request` may take; a `post` has no limit of its own.
    """

    def __init__(self, socket: str, timeout: float = _CONTROL_TIMEOUT) -> None:
        self.socket = socket
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=_CONNECT_TIMEOUT)
        self._pool = Pool(socket, _POOL_KEEPS, self._log_retry)
        self._control: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        self._pool.close()
        if self._control is not None:
            await self._control.close()
            self._control = None

    async def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON value of the answer; if it is not JSON, its text, or None where it is empty.

        Raises EngineBusy, EngineRefused, and EngineError where vLLM fails.
        """
        try:
            async with self._session().request(
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
    async def post(
        self, path: str, data: bytes, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Answer]:
        """The answer to a JSON body, of any status, as soon as its headers have arrived. Leaving the block before the
        answer is complete closes the connection, which aborts the request in vLLM. `headers`: further ones.

        Raises EngineBusy where there is no answer, or an incomplete one.
        """
        try:
            connection, answer = await self._pool.send(path, data, _lines(headers) if headers else b"")
        except OSError as error:  # also a ConnectionError, and the TimeoutError of a new connection
            raise _no_answer(error) from error
        try:
            yield answer
        except ConnectionClosed as error:
            raise _no_answer(error) from error
        finally:
            self._pool.give_back(connection)

    def _log_retry(self, error: Exception) -> None:
        log.debug("engine at %s closed an idle connection (%r): using a new one", self.socket, error)

    def _session(self) -> aiohttp.ClientSession:
        """The session of control requests, made on first use in the event loop that uses it."""
        if self._control is None:
            self._control = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path=self.socket, limit=0, force_close=True),
                auto_decompress=False,
            )
        return self._control


def _lines(headers: Mapping[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")


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


def _url(path: str) -> str:
    return f"http://engine{path}"
