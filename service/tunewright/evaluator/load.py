"""A load on a model: so many requests in flight at a time, each of which is followed by the next, and the time at which
each token of their answers arrives."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import aiohttp

from tunewright.evaluator.folder import Asked
from tunewright.jobs.asking import asked_of
from tunewright.jobs.gateway import Unanswered, not_answered


@dataclass(frozen=True)
class Timed:
    """One answer. Times are in seconds."""

    first: float
    """From the request to the first token."""
    whole: float
    gaps: list[float] = field(default_factory=list)
    """Between the arrivals of tokens; an event of several tokens is one arrival."""
    tokens: int = 0


async def timed(session: aiohttp.ClientSession, model: Asked, body: dict[str, Any]) -> Timed:
    """Ask for one streamed answer. Raises Refused and Unanswered."""
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    asked = asked_of(model, "/v1/completions", streamed)
    began = time.perf_counter()
    arrivals: list[float] = []
    tokens, has_ended = 0, False
    try:
        async with session.post("http://gateway/stream", json=asked) as response:
            if response.status != 200:
                raise not_answered(response.status, await response.read())
            buffered = b""
            async for part in response.content.iter_any():
                now = time.perf_counter()
                *events, buffered = (buffered + part).split(b"\n\n")
                for event in events:
                    data = event.removeprefix(b"data: ")
                    if data == b"[DONE]":
                        has_ended = True
                        continue
                    found = json.loads(data)
                    if "error" in found:
                        raise Unanswered(str(found["error"].get("message"))[:500], is_fault=True)
                    if found.get("choices"):
                        arrivals.append(now)
                    if found.get("usage"):
                        tokens = int(found["usage"]["completion_tokens"])
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise Unanswered(f"{type(error).__name__} {error}", is_fault=True) from error
    if not has_ended or not arrivals:
        raise Unanswered("the answer broke off" if arrivals else "the answer had no token", is_fault=True)
    gaps = [later - before for before, later in pairwise(arrivals)]
    return Timed(arrivals[0] - began, arrivals[-1] - began, gaps, tokens or len(arrivals))


@dataclass(frozen=True)
class Loaded:
    """What came of a load."""

    answers: list[Timed]
    wall: float
    """Seconds from the first request to the end of the last answer."""
    failed: int
    first_error: str | None


async def load(
    session: aiohttp.ClientSession,
    model: Asked,
    bodies: Sequence[dict[str, Any]],
    at_once: int,
    on_answer: Callable[[], None],
) -> Loaded:
    """Ask with all the bodies, so many at a time. Raises Refused."""
    waiting = iter(bodies)
    answers: list[Timed] = []
    errors: list[str] = []

    async def work() -> None:
        for body in waiting:
            try:
                answers.append(await timed(session, model, body))
            except Unanswered as error:
                errors.append(str(error))
            on_answer()

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(at_once, len(bodies))):
            group.create_task(work())
    return Loaded(answers, time.perf_counter() - began, len(errors), errors[0] if errors else None)
