"""Performs the effects of flows with httpx.AsyncClient. A driver drives one flow, closes what it opened."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import httpx

from .._core.flow import Effect, Finished, Flow, Item, NextChunk, Notify, Send, Sleep, Started

T = TypeVar("T")


class AsyncDriver:
    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None

    async def run(self, flow: Flow[T]) -> T:
        """Drive a flow without items to its end."""
        try:
            end = await self.advance(flow)
            assert isinstance(end, Finished), "a stream's flow needs an AsyncStream"
            value: T = end.value
            return value
        finally:
            flow.close()
            await self.close()

    async def advance(self, flow: Flow[Any]) -> Item | Started | Finished:
        """Drive a flow until it has something for the caller or ends."""
        try:
            effect = flow.send(None)
            while not isinstance(effect, Item | Started):
                try:
                    reply = await self._perform(effect)
                except Exception as error:
                    effect = flow.throw(error)
                else:
                    effect = flow.send(reply)
            return effect
        except StopIteration as end:
            return Finished(end.value)

    async def close(self) -> None:
        """Let go of the streamed response, if one is open; an unfinished one is aborted."""
        response, self._response = self._response, None
        if response is not None:
            await response.aclose()

    async def _perform(self, effect: Effect) -> Any:
        match effect:
            case Send():
                return await self._send(effect)
            case NextChunk():
                return await anext(self._chunks, None) if self._chunks is not None else None
            case Sleep(seconds):
                await self.close()  # whatever was open is not waited with
                await asyncio.sleep(seconds)
            case Notify(callback, value):
                result = callback(value)
                if inspect.isawaitable(result):
                    await result
        return None

    async def _send(self, effect: Send) -> httpx.Response:
        await self.close()
        request = self._http.build_request(**effect.request.arguments())
        response = await self._http.send(request, stream=effect.stream)
        if effect.stream:
            self._response = response
            self._chunks = response.aiter_bytes()
            if not response.is_success and response.status_code not in effect.accepted:
                await response.aread()
        return response


class AsyncStream(Generic[T]):
    """Values that come one by one: `async for value in stream`. Leaving its `async with` block, or close(),
    aborts it in the server; one that is read to its end, or fails, closes itself."""

    def __init__(self, driver: AsyncDriver, flow: Flow[None]) -> None:
        self._driver = driver
        self._flow = flow
        self._closed = False
        self.response: httpx.Response | None = None
        """The open response (its headers); None for a stream of events, which may have several in turn."""

    async def _start(self) -> Self:
        await self._advance()
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        step = await self._advance()
        if isinstance(step, Item):
            value: T = step.value
            return value
        raise StopAsyncIteration

    async def _advance(self) -> Item | Started | Finished:
        if self._closed:
            return Finished(None)
        try:
            step = await self._driver.advance(self._flow)
        except BaseException:
            await self.close()
            raise
        if isinstance(step, Started):
            self.response = step.response
        elif isinstance(step, Finished):
            await self.close()
        return step

    async def close(self) -> None:
        """Abort the stream. May be called twice."""
        self._closed = True
        self._flow.close()
        await self._driver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
