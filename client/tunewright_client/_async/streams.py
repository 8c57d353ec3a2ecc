"""Streams: the chunks of a generation and the events of a job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from types import TracebackType
from typing import Generic, Self, TypeVar

import httpx2
from pydantic import BaseModel

from .._core import endpoints
from .._core.call import Call
from .._core.retry import is_retryable
from .._core.sse import DONE, SSEDecoder, parse_event
from .._core.waiting import Outage
from .._errors import APITimeoutError, StreamInterruptedError, TunewrightError
from ..types import JobEvent
from .http import AsyncAnswer, AsyncHTTP

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class AsyncStream(Generic[T]):
    """Values that arrive one by one: `async for value in stream`.

    Leaving its `async with` block, or `close()`, aborts it in the server. A stream that is read to its end, or raises
    an error, closes itself.
    """

    response: httpx2.Response | None
    """The open response with its headers. None for the events of a job, which may come in several responses."""

    def __init__(self, items: AsyncGenerator[T, None], answer: AsyncAnswer | None = None) -> None:
        self._items = items
        self._answer = answer
        self._closed = False
        self.response = None if answer is None else answer.response

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            return await anext(self._items)
        except BaseException as error:
            aborted = self._closed and isinstance(error, TunewrightError)
            await self.close()
            if aborted:
                raise StopAsyncIteration from None
            raise

    async def close(self) -> None:
        """Abort the stream. May be called again, and while another task or thread reads, whose loop then ends."""
        self._closed = True
        await self._disconnect()
        # The generator cannot be closed while it runs for another reader. That read fails with the connection.
        with suppress(RuntimeError, ValueError):
            await self._items.aclose()

    async def _disconnect(self) -> None:
        if self._answer is not None:
            await self._answer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncEventStream(AsyncStream[JobEvent]):
    """The events of a job, oldest first, until it has ended. A broken connection is replaced by a new one."""

    def __init__(
        self, http: AsyncHTTP, path: str, job_id: str, after: str | None, reconnect_timeout: float
    ) -> None:
        super().__init__(self._read(http.once(), path, job_id, after, Outage(reconnect_timeout)))

    async def _read(
        self, http: AsyncHTTP, path: str, job_id: str, after: str | None, outage: Outage
    ) -> AsyncGenerator[JobEvent, None]:
        while not self._closed:
            decoder = SSEDecoder()
            connected = False
            try:
                self._answer = await http.send(endpoints.stream_events(path, job_id, after))
                connected = True
                while (piece := await self._answer.read()) is not None:
                    for event in decoder.feed(piece):
                        if event.data == DONE:
                            return
                        parsed = parse_event(event.data, JobEvent)
                        outage.end()
                        if parsed.id != after:
                            after = parsed.id
                            yield parsed
                raise StreamInterruptedError("the event stream ended before the job did")
            except TunewrightError as error:
                await self._disconnect()
                if self._closed:
                    raise
                if connected and isinstance(error, APITimeoutError):
                    # No event during the read timeout is no failure, but the connection may be dead.
                    outage.end()
                    continue
                delay = outage.next_delay() if is_retryable(error) else None
                if delay is None:
                    raise
            await asyncio.sleep(delay)


async def open_generation(http: AsyncHTTP, call: Call[None], model: type[M]) -> AsyncStream[M]:
    """The chunks of a generation, each parsed as a `model`. Returns after the first byte has come; nothing is retried
    from then on."""
    answer = await http.send(call)
    return AsyncStream(_chunks(answer, model), answer)


async def _chunks(answer: AsyncAnswer, model: type[M]) -> AsyncGenerator[M, None]:
    decoder = SSEDecoder()
    request_id = answer.response.headers.get("x-request-id")
    while (piece := await answer.read_uninterrupted("the stream")) is not None:
        for event in decoder.feed(piece):
            if event.data == DONE:
                return
            yield parse_event(event.data, model, request_id)
    raise StreamInterruptedError("the stream ended without [DONE]")
