"""Writes the audit log: a thread adds changes and refusals to the database as they come. No request waits for it.

What cannot be written, on a full disk say, is kept in memory and written later. The line of each in the service's log
(`logs.audit`) is written in any case.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from tunewright.api.http.threads import Threads
from tunewright.store.audit import Audited
from tunewright.store.store import Store

log = logging.getLogger("tunewright.api")

REFUSED, FORBIDDEN = "login.failed", "request.refused"
REFUSALS_A_MINUTE = 60
"""More are counted only: whoever has no key could fill the disk otherwise."""
_MOST_WAITING = 10_000
_MOST_AT_ONCE = 500
_AGAIN_AFTER = 5.0
"""Seconds between two attempts to write."""

_PROJECT = "/v1/organization/projects"
_KEYS, _ADMIN_KEYS = f"{_PROJECT}/{{project_id}}/api_keys", "/v1/organization/admin_api_keys"
_TYPES = {
    ("POST", _PROJECT): "project.created",
    ("POST", f"{_PROJECT}/{{project_id}}"): "project.updated",
    ("POST", f"{_PROJECT}/{{project_id}}/archive"): "project.archived",
    **{
        (method, path + end): f"api_key.{what}"
        for path in (_KEYS, _ADMIN_KEYS)
        for method, end, what in (
            ("POST", "", "created"), ("POST", "/{key_id}", "updated"), ("POST", "/{key_id}/rotate", "updated"),
            ("DELETE", "/{key_id}", "deleted"),
        )
    },
}  # fmt: skip
"""OpenAI's names for what it has too."""


def type_of(method: str, route: str, status: int) -> str:
    """What a request was, as OpenAI's audit log names it, or by its method where that has no name."""
    if status in (401, 403):
        return REFUSED if status == 401 else FORBIDDEN
    named = _TYPES.get((method, route))
    if named is not None:
        return named
    if method == "DELETE":
        return "resource.deleted"
    return "resource.created" if method == "POST" and "{" not in route else "resource.updated"


class AuditTrail:
    """Used from one event loop. `clock`: monotonic seconds."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._threads = Threads("audit", 1)
        self._waiting: deque[Audited] = deque(maxlen=_MOST_WAITING)
        self._writing: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._warned = False
        self._minute, self._refusals, self._left_out = 0, 0, 0

    def note(self, done: Audited) -> None:
        if done.type in (REFUSED, FORBIDDEN):
            if not self._has_room():
                self._left_out += 1
                return
            if self._left_out:
                done = replace(done, details={"refusals_left_out": self._left_out})
                self._left_out = 0
        self._waiting.append(done)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Write what is left, until all is written or it cannot be."""
        self._closing.set()
        if self._writing is not None:
            await self._writing
        while self._waiting and await self._write_some():
            pass
        if self._waiting:
            log.error(
                "%d rows are missing in the audit log, since it could not be written", len(self._waiting)
            )

    def _has_room(self) -> bool:
        minute = int(self._clock() // 60)
        if minute != self._minute:
            self._minute, self._refusals = minute, 0
        self._refusals += 1
        return self._refusals <= REFUSALS_A_MINUTE

    async def _write(self) -> None:
        try:
            while self._waiting and not self._closing.is_set():
                if not await self._write_some():
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._closing.wait(), _AGAIN_AFTER)
        finally:
            self._writing = None

    async def _write_some(self) -> bool:
        some = [self._waiting.popleft() for _ in range(min(_MOST_AT_ONCE, len(self._waiting)))]
        if not some:
            return True
        try:
            await self._threads.run(self._store.audit.add, some)
        except Exception as error:  # for example a full disk
            if not self._warned:
                log.warning("the audit log could not be written, and is kept in memory: %s", error)
            self._warned = True
            self._waiting.extendleft(reversed(some[: _MOST_WAITING - len(self._waiting)]))
            return False
        self._warned = False
        return True
