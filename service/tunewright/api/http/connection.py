"""uvicorn's connection with timeouts: for the heads of requests, and for clients that do not read their answers.

uvicorn pauses an answer while its client does not read (`pause_writing`), so memory is bounded, but it waits without
limit. A connection that is closed here is a disconnect for the application: a generation is aborted in vLLM.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import sys
import termios
from contextlib import suppress
from secrets import token_hex
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tunewright.errors import InvalidRequest

log = logging.getLogger("tunewright.api")

_HEAD_SECONDS = 30.0
_HEAD_BYTES = 256 * 2**10
"""Largest request line and headers together, and most bytes of what is neither head nor body: empty lines, trailers,
the frames of chunks. Neither uvicorn nor httptools has limits, and uvicorn keeps trailers."""
_LONGEST_URL = 65_535
"""httptools refuses longer ones."""
_FRAMES = 2
"""Bytes of frames that are allowed for each byte of a body that comes in chunks."""
_LAST_CALL = 1.0
"""Seconds in which the request of a connection must begin that was accepted before the api stopped."""


class Connection(HttpToolsProtocol):
    """Closes the connection of a client that reads no byte of a waiting answer for `slow_reader_timeout` seconds, or
    that does not complete the head of a request in time."""

    def __init__(self, *args: Any, slow_reader_timeout: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._slow_reader_timeout = slow_reader_timeout
        self._reader_timer: asyncio.TimerHandle | None = None
        self._unread, self._read_at = 0, 0.0
        self._head_timer: asyncio.TimerHandle | None = None
        self._extra_bytes = 0
        """Bytes that were no body, since the last head was complete."""
        self._body_bytes = 0
        self._in_head = self._had_head = self._is_last = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._end, "sent no request in time")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        self._stop_reader_timer()
        super().connection_lost(exc)

    # heads

    def data_received(self, data: bytes) -> None:
        self._body_bytes, self._had_head = 0, False
        super().data_received(data)
        if self._had_head and not self._in_head:
            return
        extra = len(data) - self._body_bytes * (1 + _FRAMES)
        self._extra_bytes = max(0, self._extra_bytes + extra)
        is_idle = self.cycle is None or self.cycle.response_complete
        if self._extra_bytes > _HEAD_BYTES:
            self._end("sent too much that is no body")
        elif self._head_timer is None and (self._in_head or (is_idle and not self._body_bytes)):
            self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._end, "sent half a head")

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in the form of all other errors; uvicorn's own answer is plain text."""
        refused = InvalidRequest(
            f"This is no HTTP request, or its URL is longer than {_LONGEST_URL} bytes.", param=None
        )
        body = json.dumps(refused.body()).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: req_{token_hex(16)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._end_head()
        self._had_head = True
        super().on_headers_complete()
        if self._is_last and self.cycle is not None:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def shutdown(self) -> None:
        """Close an idle connection, and any other after its answer.

        One on which a request is about to come is not idle: uvicorn closes it, and its client, whose request waits in
        the kernel, gets a reset instead of an answer.
        """
        is_new, is_between = self.cycle is None, self.cycle is None or self.cycle.response_complete
        if is_new or (is_between and (self._in_head or _waiting_bytes(self.transport, termios.FIONREAD))):
            self._is_last = True
            self.loop.call_later(_LAST_CALL, super().shutdown)
        else:
            super().shutdown()

    def _end_head(self) -> None:
        self._in_head = False
        self._extra_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    # answers

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = _unread(self.transport)
        self._read_at = self.loop.time()
        self._start_reader_timer()

    def resume_writing(self) -> None:
        self._stop_reader_timer()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():  # a regular close would wait until the client reads it
            self._end("did not read the end of its answer")
        else:
            super().timeout_keep_alive_handler()

    def _start_reader_timer(self) -> None:
        self._reader_timer = self.loop.call_later(self._slow_reader_timeout / 4, self._check_reader)

    def _check_reader(self) -> None:
        unread, now = _unread(self.transport), self.loop.time()
        if unread < self._unread:
            self._unread, self._read_at = unread, now
        elif now - self._read_at >= self._slow_reader_timeout:
            self._end(f"read nothing of its answer for {self._slow_reader_timeout:g} s")
            return
        self._start_reader_timer()

    def _stop_reader_timer(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _end(self, why: str) -> None:
        client = self.client[0] if self.client else "an unknown address"
        log.info("closed a connection: the client at %s %s", client, why)
        self.transport.abort()


def _unread(transport: asyncio.Transport) -> int:
    """Number of bytes that the client has not received yet, in the transport's buffer and in the kernel's.

    The kernel's must be counted: it takes more from the transport only after it has sent megabytes.
    """
    return transport.get_write_buffer_size() + _waiting_bytes(transport, termios.TIOCOUTQ)


def _waiting_bytes(transport: asyncio.Transport, queue: int) -> int:
    """Number of bytes in a queue of the kernel: TIOCOUTQ, not received yet; FIONREAD, not read yet."""
    waiting = bytearray(4)
    with suppress(OSError):
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), queue, waiting)
    return int.from_bytes(waiting, sys.byteorder)
