"""How a job's process asks the service's own gateway: so many requests at once, each again where it could not be
answered now, and each once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

import aiohttp

from tunewright.jobs.failure import TrainingFailed
from tunewright.jobs.gateway import (
    SOURCE_HEADER,
    AskedModel,
    Refused,
    Unanswered,
    not_answered,
    payer_headers,
)

Key = TypeVar("Key")
Answer = TypeVar("Answer")

PATIENCE = 1800.0
"""Seconds without any answer of a model after which the job fails."""
_MOST_FAULTS = 5
"""Faults at one request after which it counts as unanswered."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 10.0
_OF_THE_MODEL = frozenset({
    "model_not_found", "model_not_served", "model_quarantined", "model_merge_only", "model_not_loaded", "model_changed",
    "deployment_failed", "no_chat_template", "judge_refused",
})  # fmt: skip
"""Codes of errors that every other request would have too."""


class Stopped(Exception):
    """The process was asked to stop."""


def gateway_session(
    socket: str, project: str, request_timeout: float, source: str = "evaluation", *, key: str | None
) -> aiohttp.ClientSession:
    """Connections to the gateway on this socket. What is asked counts as this source's use of the project and of the
    key that has created the job."""
    return aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(path=socket, limit=0),
        timeout=aiohttp.ClientTimeout(total=request_timeout + 60),
        headers={**payer_headers(project, key), SOURCE_HEADER: source},
    )


async def ask_gateway(
    session: aiohttp.ClientSession, model: AskedModel, path: str, body: dict[str, Any]
) -> dict[str, Any]:
    """The gateway's answer to a request to the model. Raises Unanswered and Refused."""
    try:
        async with session.post("http://gateway/ask", json=asked_of(model, path, body)) as response:
            text = await response.read()
    except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
        raise Unanswered(f"{type(error).__name__} {error}") from error
    if response.status != 200:
        raise not_answered(response.status, text)
    return dict(json.loads(text))


async def first_that_fits(
    forms: Sequence[dict[str, Any]], ask: Callable[[dict[str, Any]], Awaitable[Answer]]
) -> Answer:
    """The answer to the first form of a question for which the context has room."""
    for form in forms[:-1]:
        try:
            return await ask(form)
        except Refused as refusal:
            if refusal.code != "context_length_exceeded":
                raise
    return await ask(forms[-1])


def asked_of(model: AskedModel, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """What the gateway is sent for a request to the model."""
    return {
        "model": model.name,
        "content": model.content,
        "path": path,
        "body": {**body, "model": model.name},
    }


class Patience:
    """Waits for the answers of one model for as long as it answers anything."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._last_answer = time.monotonic()

    async def answer(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer to one request. Raises Refused where it has none, and TrainingFailed where no request has one."""
        wait, faults = _FIRST_WAIT, 0
        while True:
            try:
                found = await ask()
                self._last_answer = time.monotonic()
                return found
            except Refused as refusal:
                if refusal.code in _OF_THE_MODEL:
                    raise TrainingFailed(str(refusal.code), f"{self._model}: {refusal}") from refusal
                self._last_answer = time.monotonic()
                raise
            except Unanswered as error:
                if time.monotonic() - self._last_answer > PATIENCE:
                    raise TrainingFailed(
                        "engine_unavailable",
                        f"{self._model} has answered nothing for {PATIENCE / 60:.0f} minutes, last: {error}",
                    ) from error
                faults += error.is_fault
                if faults >= _MOST_FAULTS:
                    raise Refused(str(error), "not_answered", 500) from error
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)


async def each(
    keys: Iterable[Key], at_once: int, work: Callable[[Key], Awaitable[None]], stopped: asyncio.Event
) -> None:
    """Do the work of each key, so many at a time. Raises Stopped, and what `work` raises."""
    waiting = iter(keys)

    async def worker() -> None:
        for key in waiting:
            await work(key)

    workers = [asyncio.create_task(worker()) for _ in range(at_once)]
    stop = asyncio.create_task(stopped.wait())
    try:
        pending = set(workers)
        while pending:
            done, _ = await asyncio.wait({*pending, stop}, return_when=asyncio.FIRST_COMPLETED)
            if stop in done:
                raise Stopped
            for one in done - {stop}:
                one.result()
            pending -= done
    finally:
        for task in (*workers, stop):
            task.cancel()
        await asyncio.gather(*workers, stop, return_exceptions=True)
