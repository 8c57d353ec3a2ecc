"""Flows: the API's methods as generators that yield what is to be done and are sent the result.

A flow does no input or output on the network and does not sleep: it yields one of the effects below, and the
driver of a client performs it and sends back the result, or throws the exception that came of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import httpx
from pydantic import ValidationError

from .._errors import (
    InvalidResponseError,
    StreamInterruptedError,
    TunewrightError,
    connection_error,
    status_error,
)
from .call import Call, Context, Prepared
from .retry import retry_delay

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request: gives its httpx.Response. With `stream`, a successful body is left for NextChunk."""

    request: Prepared
    stream: bool = False
    accepted: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class NextChunk:
    """Read on in the response that was last sent for with `stream`: gives bytes, or None at its end."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Do nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Notify:
    """Call the caller's function with a value; the async driver awaits what it returns, if it can."""

    callback: Callable[[Any], Awaitable[None] | None]
    value: Any


@dataclass(frozen=True, slots=True)
class Started:
    """A stream is open; its first item has not been read."""

    response: httpx.Response


@dataclass(frozen=True, slots=True)
class Item:
    """The next value of a stream, for the caller."""

    value: Any


@dataclass(frozen=True, slots=True)
class Finished:
    """What a driver returns when a flow has ended; `value` is the flow's result."""

    value: Any


Effect: TypeAlias = Send | NextChunk | Sleep | Notify | Started | Item
Flow: TypeAlias = Generator[Effect, Any, T]


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful response and, for a call that asks for it, the first piece of its body."""

    response: httpx.Response
    first: bytes = b""


def exchange(context: Context, call: Call[Any]) -> Flow[Answer]:
    """Send a call until it succeeds or the retries are used up. A POST's idempotency key stays the same.

    Raises APIConnectionError, APITimeoutError, APIStatusError, StreamInterruptedError (no first byte).
    """
    key = call.idempotency_key
    if key is None and call.method == "POST":
        key = str(uuid.uuid4())
    attempt = 0
    while True:
        try:
            with call.prepared(context, key) as request:
                return (yield from _attempt(request, call))
        except TunewrightError as error:
            delay = retry_delay(error, attempt, context.max_retries)
            if delay is None:
                raise
        attempt += 1
        yield Sleep(delay)


def _attempt(request: Prepared, call: Call[Any]) -> Flow[Answer]:
    try:
        response: httpx.Response = yield Send(request, call.stream, call.accepted)
    except httpx.RequestError as error:
        raise connection_error(error) from error
    if not response.is_success and response.status_code not in call.accepted:
        raise status_error(response)
    if not call.first_byte:
        return Answer(response)
    first = yield from next_chunk()
    if first is None:
        raise StreamInterruptedError("the server ended the stream before its first byte")
    return Answer(response, first)


def next_chunk() -> Flow[bytes | None]:
    """The next piece of the open response, None at its end. Raises APIConnectionError and APITimeoutError."""
    try:
        chunk: bytes | None = yield NextChunk()
    except httpx.RequestError as error:
        raise connection_error(error) from error
    return chunk


def fetch(context: Context, call: Call[T]) -> Flow[T]:
    """Send a call and parse its answer. Raises InvalidResponseError where that is not what the API
    describes."""
    answer = yield from exchange(context, call)
    response = answer.response
    try:
        return call.parse(response)
    except (ValidationError, ValueError) as error:
        shown = response.headers.get("content-type", "no content type")
        raise InvalidResponseError(
            f"{call.method} {response.url.path} answered {response.status_code} ({shown}), which is not what "
            "Tunewright's API describes: is base_url right?"
        ) from error
