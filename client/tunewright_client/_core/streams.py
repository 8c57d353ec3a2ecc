"""The flows that read a response piece by piece: a generation, a job's events, a download."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
import uuid
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from .._errors import (
    APIConnectionError,
    APITimeoutError,
    InvalidResponseError,
    StreamInterruptedError,
    TunewrightError,
    error_in_stream,
)
from ..types import JobEvent
from . import endpoints
from .call import Call, Context
from .flow import Flow, Item, Sleep, Started, exchange, next_chunk
from .retry import backoff, is_retryable
from .sse import DONE, SSEDecoder

M = TypeVar("M", bound=BaseModel)


def generation(context: Context, call: Call[None], kind: type[M]) -> Flow[None]:
    """The chunks of a generation. Retried until its first byte has come, never after it.

    Raises what `exchange` does; afterwards the typed error of an error event, APITimeoutError when the next
    byte does not come in time, StreamInterruptedError when the connection breaks or the body ends without
    [DONE].
    """
    answer = yield from exchange(context, call)
    yield Started(answer.response)
    decoder = SSEDecoder()
    chunk: bytes | None = answer.first
    while chunk is not None:
        for event in decoder.feed(chunk):
            if event.data == DONE:
                return
            yield Item(parse_event(event.data, kind, answer.response.headers.get("x-request-id")))
        try:
            chunk = yield from next_chunk()
        except APITimeoutError:
            raise
        except APIConnectionError as error:
            raise StreamInterruptedError(f"the stream broke off: {error}") from error
    raise StreamInterruptedError("the stream ended without [DONE]")


def parse_event(data: str, kind: type[M], request_id: str | None = None) -> M:
    """One event's JSON as a model; raises the typed error where it has an `error`."""
    try:
        body = json.loads(data)
        if isinstance(body, dict) and body.get("error"):
            raise error_in_stream(body["error"], request_id)
        return kind.model_validate(body)
    except (ValidationError, ValueError) as error:
        raise InvalidResponseError(f"an event of the stream cannot be read: {data[:200]!r}") from error


def job_events(
    context: Context, path: str, job_id: str, after: str | None, reconnect_seconds: float
) -> Flow[None]:
    """The events of a job of the collection at `path`, oldest first, until it is final; connects anew where a
    connection ends too early.

    Without an event or a quiet, open connection for `reconnect_seconds`, raises the last failure. A failure
    that is not worth repeating (404, 401) is raised at once.
    """
    once = dataclasses.replace(context, max_retries=0)
    outage_since: float | None = None
    failures = 0
    while True:
        failure: TunewrightError
        decoder = SSEDecoder()
        try:
            yield from exchange(once, endpoints.stream_events(path, job_id, after))
            while (chunk := (yield from _next_or_quiet())) is not None:
                for event in decoder.feed(chunk):
                    if event.data == DONE:
                        return
                    parsed = parse_event(event.data, JobEvent)
                    outage_since, failures = None, 0
                    if parsed.id != after:
                        after = parsed.id
                        yield Item(parsed)
            failure = StreamInterruptedError("the event stream ended before the job did")
        except _Quiet:  # nothing wrong; the connection may be half open all the same
            outage_since, failures = None, 0
            continue
        except TunewrightError as error:
            if not is_retryable(error):
                raise
            failure = error
        now = time.monotonic()
        outage_since = now if outage_since is None else outage_since
        delay = backoff(failures)
        if now - outage_since + delay > reconnect_seconds:
            raise failure
        failures += 1
        yield Sleep(delay)


class _Quiet(Exception):
    """An open event stream had nothing to say for the length of the read timeout."""


def _next_or_quiet() -> Flow[bytes | None]:
    try:
        return (yield from next_chunk())
    except APITimeoutError as error:
        raise _Quiet from error


def download(context: Context, call: Call[None], name: str, path: str | os.PathLike[str]) -> Flow[Path]:
    """Write a response's body to a file: under a temporary name beside it, then renamed, so that `path` is
    never half written. A folder gets the file `<name>.tar`. Retried until the first byte has come.

    Raises what `exchange` does, and StreamInterruptedError when the connection breaks on the way.
    """
    target = Path(path)
    if target.is_dir():
        target = target / (re.sub(r"[^A-Za-z0-9._-]+", "-", name) + ".tar")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {target.parent}")
    answer = yield from exchange(context, call)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("xb") as file:
            chunk: bytes | None = answer.first
            while chunk is not None:
                file.write(chunk)
                try:
                    chunk = yield from next_chunk()
                except APITimeoutError:
                    raise
                except APIConnectionError as error:
                    raise StreamInterruptedError(f"the download broke off: {error}") from error
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target
