"""The reply to the client of one generation: its head, its body or its events, comments meanwhile, and its error.

A stream that waits (for its adapter, for its turn, for a grammar) is silent until the engine answers, and proxies cut
connections that are silent for 60 s. So it gets its head meanwhile, and comments. What fails afterwards is told by an
event, since the status has been sent.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from starlette.types import Message, Receive, Scope, Send

from tunewright.api.gateway.routing import Target
from tunewright.api.http.errors import error_response
from tunewright.errors import TunewrightError
from tunewright.registry.aliases import Alias

Headers = list[tuple[bytes, bytes]]

_EVENTS = "text/event-stream; charset=utf-8"
_KEEP_ALIVE = 15.0
"""Seconds without an event after which a stream gets a comment. Proxies cut connections that are silent for 60 s."""
_COMMENT = b": keep-alive\n\n"
"""With a blank line, since many clients split a stream at these. It cannot be taken for an event: vLLM's have no id."""


class Reply:
    """Sends the reply to one generation. Each part of a stream is whole events."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._is_sending = False
        self._has_head = False
        self.has_ended = False
        """The end is sent, or being sent."""
        self._timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Task[None] | None = None
        self._quiet_since = time.monotonic()
        self.began_at: float | None = None
        """Monotonic time at which the engine's answer began."""

    async def begin(self, status: int, headers: Headers) -> None:
        """The engine answers: send the head, if none was sent while it was waited for."""
        self.began_at = time.monotonic()
        await self._after_comment()
        self._is_sending = True
        await self._send_head(status, headers)
        self._is_sending = False

    async def part(self, data: bytes) -> None:
        await self._send_part({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes) -> None:
        self.has_ended = True
        await self._send_part({"type": "http.response.body", "body": data})

    async def fail(self, error: TunewrightError, *, is_response: bool = False) -> None:
        """Tell the error by its status, or by an event where that has been sent; nothing after a whole answer.

        `is_response`: the stream has the events of the responses API, which have types.
        """
        if not self._has_head:
            self.has_ended = True
            await error_response(error)(self._scope, self._receive, self._send)
        elif not self.has_ended:
            await self.end(_typed_error_event(error) if is_response else _event(error.body()))

    def keep_open(self, headers: Callable[[], Headers]) -> None:
        """Until `close`, send a comment whenever the stream was quiet for `_KEEP_ALIVE` seconds, at first with a head
        that has these headers."""
        # A timer, since a task for each stream would cost more than all else that a reply does.
        self._timer = asyncio.get_running_loop().call_later(_KEEP_ALIVE, self._look, headers)

    async def close(self) -> None:
        """End what `keep_open` began."""
        if self._timer is not None:
            self._timer.cancel()
        if self._comment is not None:
            self._comment.cancel()
            with suppress(asyncio.CancelledError):
                await self._comment
            self._comment = None
            self._is_sending = False

    def _look(self, headers: Callable[[], Headers]) -> None:
        # while a part is being sent, it is the client that is slow
        quiet = 0.0 if self._is_sending else time.monotonic() - self._quiet_since
        if quiet >= _KEEP_ALIVE and not self.has_ended:
            self._comment = asyncio.get_running_loop().create_task(self._send_comment(headers()))
            quiet = 0.0
        self._timer = asyncio.get_running_loop().call_later(_KEEP_ALIVE - quiet, self._look, headers)

    async def _send_comment(self, headers: Headers) -> None:
        self._is_sending = True
        await self._send_head(200, headers)
        await self._send({"type": "http.response.body", "body": _COMMENT, "more_body": True})
        self._quiet_since = time.monotonic()
        self._is_sending = False

    async def _after_comment(self) -> None:
        """The request's own task sends one thing after another, and waits for a comment that is on its way."""
        if self._comment is not None:
            await asyncio.shield(self._comment)
            self._comment = None

    async def _send_head(self, status: int, headers: Headers) -> None:
        if not self._has_head:
            await self._send({"type": "http.response.start", "status": status, "headers": headers})
            self._has_head = True

    async def _send_part(self, message: Message) -> None:
        if self._comment is not None:
            await self._after_comment()
        self._is_sending = True
        await self._send(message)
        self._is_sending = False
        self._quiet_since = time.monotonic()


def answer_headers(model: str, alias: Alias | None = None, content_type: str = _EVENTS) -> Headers:
    """The headers of an answer of `model`, which was asked for by `alias` where that is given."""
    headers = [
        (b"content-type", content_type.encode()),
        (b"cache-control", b"no-cache"),
        (b"x-tunewright-model", _header(model)),
    ]
    if alias is not None:
        headers.append((b"x-tunewright-alias", _header(f"{alias.name}@{alias.version}")))
    return headers


def _header(value: str) -> bytes:
    return quote(value, safe=":/@. ").encode()


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def _typed_error_event(error: TunewrightError) -> bytes:
    """The event `error` of OpenAI's responses: its fields as the reference has them, and within `error` as the service
    sends them, which is where the `openai` package looks."""
    body = error.body()
    fields = {key: body["error"][key] for key in ("code", "message", "param")}
    return b"event: error\n" + _event({"type": "error", **fields, **body})


class Rename:
    """Replaces the engine's name for the model of an answer by the public one."""

    def __init__(self, target: Target) -> None:
        self._from = b'"model":"' + target.internal_name.encode() + b'"'
        self._to = b'"model":' + json.dumps(target.public_name).encode()

    def __call__(self, data: bytes) -> bytes:
        return data.replace(self._from, self._to)


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone."""
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return
