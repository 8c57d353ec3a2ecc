"""Asks the gateway for the answers that are missing, so many at once, and again where it could not answer now."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import aiohttp

from tunewright.batcher.folder import BatchSpec
from tunewright.batcher.requests import Request
from tunewright.batcher.results import Results
from tunewright.jobs.gateway import Refused, Unanswered, not_answered

log = logging.getLogger("tunewright.batcher")

_MOST_FAULTS = 8
"""Faults at one request after which it counts as failed. What the gateway cannot answer now, since an engine starts or
has too much to do, is no fault: it is asked again until the completion window is over."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 10.0
FULL_DISK_WAIT = 10.0
"""Seconds until a result is written again for which the disk had no room."""


class Asking:
    """Asks for requests that have no result yet, and keeps what comes."""

    def __init__(
        self,
        spec: BatchSpec,
        requests: Sequence[Request],
        file: BinaryIO,
        results: Results,
        on_result: Callable[[], None],
    ) -> None:
        self._spec = spec
        self._file = file
        self._results = results
        self._on_result = on_result
        self._by_model: dict[str, deque[Request]] = defaultdict(deque)
        for request in requests:
            self._by_model[request.model].append(request)

    async def run(self) -> None:
        """Return when all have a result. It may be cancelled at any time."""
        if not self._by_model:
            return
        connector = aiohttp.UnixConnector(path=self._spec.socket, limit=0)
        # without a limit of its own: the gateway has one from the moment at which the request has its turn
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
        each = max(
            1, self._spec.at_once // len(self._by_model)
        )  # a model that does not answer holds up no other
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                asyncio.TaskGroup() as group,
            ):
                for waiting in self._by_model.values():
                    for _ in range(min(each, len(waiting))):
                        group.create_task(self._work(session, waiting))
        except ExceptionGroup as several:  # whose text and type say nothing
            raise several.exceptions[0] from None

    async def _work(self, session: aiohttp.ClientSession, waiting: deque[Request]) -> None:
        while waiting:
            await self._answer(session, waiting.popleft())
            self._on_result()

    async def _answer(self, session: aiohttp.ClientSession, request: Request) -> None:
        body = json.dumps(request.body(self._file)).encode()
        wait, faults = _FIRST_WAIT, 0
        while True:
            try:
                answer = await self._ask(session, request, body)
                await keep(self._results.answer, request.custom_id, answer)
                return
            except Refused as refusal:
                status, error = refusal.status, refusal.error or _error(str(refusal), refusal.code)
                await keep(self._results.refuse, request.custom_id, status, error)
                return
            except Unanswered as fault:
                faults += fault.is_fault
                if faults >= _MOST_FAULTS:
                    error = _error(str(fault), "server_error", "server_error")
                    await keep(self._results.refuse, request.custom_id, 500, error)
                    return
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    async def _ask(self, session: aiohttp.ClientSession, request: Request, body: bytes) -> Any:
        """The gateway's answer. Raises Unanswered and Refused."""
        spec = self._spec
        params = {
            "path": spec.endpoint, "sticky": request.custom_id, "project": spec.project, "key": spec.key or "",
        }  # fmt: skip
        headers = {"Content-Type": "application/json"}
        try:
            async with session.post(
                "http://gateway/batch", params=params, data=body, headers=headers
            ) as response:
                text = await response.read()
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            raise Unanswered(f"{type(error).__name__} {error}") from error
        if response.status != 200:
            raise not_answered(response.status, text)
        try:
            return json.loads(text)
        except ValueError as error:
            raise Unanswered("the answer is not JSON", is_fault=True) from error


async def keep(write: Callable[..., None], *args: Any) -> None:
    """Write a result, as soon as the disk has room for it: what was answered until then is not lost."""
    while True:
        try:
            write(*args)
            return
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            log.warning("the disk is full; trying again in %.0f s", FULL_DISK_WAIT)
        await asyncio.sleep(FULL_DISK_WAIT)


def seconds_left(spec: BatchSpec) -> float:
    """Until the completion window is over."""
    return spec.expires_at - time.time()


def _error(message: str, code: str | None, type: str = "invalid_request_error") -> dict[str, Any]:
    return {"message": message, "type": type, "param": None, "code": code}
