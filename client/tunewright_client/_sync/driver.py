"""Performs the effects of flows with httpx.Client. A driver drives one flow and closes what it opened."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import httpx

from .._core.flow import Effect, Finished, Flow, Item, NextChunk, Notify, Send, Sleep, Started

T = TypeVar("T")


class Driver:
    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._response: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())

    def run(self, flow: Flow[T]) -> T:
        """Drive a flow without items to its end."""
        try:
            end = self.advance(flow)
            assert isinstance(end, Finished), "a stream's flow needs a Stream"
            value: T = end.value
            return value
        finally:
            flow.close()
            self.close()

    def advance(self, flow: Flow[Any]) -> Item | Started | Finished:
        """Drive a flow until it has something for the caller or ends."""
        try:
            effect = flow.send(None)
            while not isinstance(effect, Item | Started):
                try:
                    reply = self._perform(effect)
                except Exception as error:
                    effect = flow.throw(error)
                else:
                    effect = flow.send(reply)
            return effect
        except StopIteration as end:
            return Finished(end.value)

    def close(self) -> None:
        """Let go of the streamed response, if one is open; an unfinished one is aborted."""
        response, self._response = self._response, None
        if response is not None:
            response.close()

    def _perform(self, effect: Effect) -> Any:
        match effect:
            case Send():
                return self._send(effect)
            case NextChunk():
                return next(self._chunks, None)
            case Sleep(seconds):
                self.close()  # whatever was open is not waited with
                time.sleep(seconds)
            case Notify(callback, value):
                callback(value)
        return None

    def _send(self, effect: Send) -> httpx.Response:
        self.close()
        request = self._http.build_request(**effect.request.arguments())
        response = self._http.send(request, stream=effect.stream)
        if effect.stream:
            self._response = response
            self._chunks = response.iter_bytes()
            if not response.is_success and response.status_code not in effect.accepted:
                response.read()
        return response


class Stream(Generic[T]):
    """Values that come one by one: `for value in stream`. Leaving its `with` block, or close(), aborts it in
    the server; one that is read to its end, or fails, closes itself."""

    def __init__(self, driver: Driver, flow: Flow[None]) -> None:
        self._driver = driver
        self._flow = flow
        self._closed = False
        self.response: httpx.Response | None = None
        """The open response (its headers); None for a stream of events, which may have several in turn."""

    def _start(self) -> Self:
        self._advance()
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        step = self._advance()
        if isinstance(step, Item):
            value: T = step.value
            return value
        raise StopIteration

    def _advance(self) -> Item | Started | Finished:
        if self._closed:
            return Finished(None)
        try:
            step = self._driver.advance(self._flow)
        except BaseException:
            self.close()
            raise
        if isinstance(step, Started):
            self.response = step.response
        elif isinstance(step, Finished):
            self.close()
        return step

    def close(self) -> None:
        """Abort the stream. May be called twice."""
        self._closed = True
        self._flow.close()
        self._driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
