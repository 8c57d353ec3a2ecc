"""uvicorn's connection, with an end to its patience: for heads of requests, and for answers that nobody takes.

uvicorn stops taking in an answer while its client does not read (`pause_writing`), so memory is bounded, but waits for
ever. Ending the connection here makes it a disconnect for whatever answers on it: a generation is aborted in vLLM.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import sys
import termios
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = logging.getLogger("tunewright.api")

_HEAD_SECONDS = 30.0
_HEAD_BYTES = 256 * 2**10
"""Of a request's line and headers; neither uvicorn nor httptools has a limit."""


class Connection(HttpToolsProtocol):
    """`slow_reader_timeout`: seconds in which a client must take at least a byte of what waits for it."""

    def __init__(self, *args: Any, slow_reader_timeout: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._patience = slow_reader_timeout
        self._reader_timer: asyncio.TimerHandle | None = None
        self._untaken, self._taken_at = 0, 0.0
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._end, "sent no request in time")

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_done()
        self._reader_goes_on()
        super().connection_lost(exc)

    # heads

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_head:
            return
        self._head_bytes += len(data)
        if self._head_bytes > _HEAD_BYTES:
            self._end("sent a head that is too large")
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._end, "sent half a head")

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_is_done()
        super().on_headers_complete()

    def _head_is_done(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    # answers

    def pause_writing(self) -> None:
        super().pause_writing()
        self._untaken = _untaken(self.transport)
        self._taken_at = self.loop.time()
        self._await_reader()

    def resume_writing(self) -> None:
        self._reader_goes_on()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():  # closing would wait until it is taken
            self._end("did not take the end of its answer")
        else:
            super().timeout_keep_alive_handler()

    def _await_reader(self) -> None:
        self._reader_timer = self.loop.call_later(self._patience / 4, self._look_at_reader)

    def _look_at_reader(self) -> None:
        untaken, now = _untaken(self.transport), self.loop.time()
        if untaken < self._untaken:
            self._untaken, self._taken_at = untaken, now
        elif now - self._taken_at >= self._patience:
            self._end(f"took nothing of its answer for {self._patience:g} s")
            return
        self._await_reader()

    def _reader_goes_on(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _end(self, why: str) -> None:
        log.info("a connection from %s was ended: it %s", self.client[0] if self.client else "nowhere", why)
        self.transport.abort()


def _untaken(transport: asyncio.Transport) -> int:
    """Bytes that wait for the client, here and in the kernel, which makes room here only when it has sent megabytes."""
    waiting = bytearray(4)
    with suppress(OSError):
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, waiting)
    return transport.get_write_buffer_size() + int.from_bytes(waiting, sys.byteorder)
