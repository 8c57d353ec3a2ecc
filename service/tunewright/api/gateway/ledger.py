"""What generations use is summed up in memory, and written every few seconds by a thread: no request waits for the
database, and a kill loses at most what was used in `FLUSH_SECONDS` (decision 0059).

A request counts once the engine has answered it, or some of it. While a stream goes on its tokens are counted as they
are seen, and corrected by what the engine tells at its end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from tunewright.api.http.threads import Threads
from tunewright.api.telemetry.counts import Generation
from tunewright.store.store import Store
from tunewright.store.usage import UsageKey, UsageKind, UsageSource, Used, hour_of

log = logging.getLogger("tunewright.api")

FLUSH_SECONDS = 5.0
_MOST_SUMS = 100_000
"""Sums that are kept while the database cannot be written."""
_KINDS: dict[str, UsageKind] = {
    "/v1/chat/completions": "completions",
    "/v1/completions": "completions",
    "/v1/responses": "completions",
    "/v1/embeddings": "embeddings",
}
"""The routes whose requests are counted."""


@dataclass(frozen=True)
class Payer:
    """Whose use a request is."""

    project: str
    key: str | None = None
    """The id of the key, where a client has sent one."""
    source: UsageSource = "live"


class Entry:
    """One request of a client. All of it counts in the hour in which it began."""

    __slots__ = ("_counted", "_key", "_ledger", "_seen")

    def __init__(
        self, ledger: Ledger, payer: Payer, kind: UsageKind, model: str, counted: Generation
    ) -> None:
        self._ledger = ledger
        self._key = UsageKey(hour_of(time.time()), payer.project, payer.key or "", model, kind, payer.source)
        self._counted = counted
        self._seen: Used | None = None
        """What is in the sums already."""

    def look(self) -> None:
        """Count what has been seen of the answer until now."""
        counted = self._counted
        if counted.usage is not None:
            self._is(Used(1, *counted.usage))
        elif counted.tokens > 0 or counted.is_whole:
            self._is(Used(1, 0, counted.tokens))

    def end(self) -> Used | None:
        """The request has ended: count it. None where the engine has answered nothing."""
        self.look()
        self._ledger.forget(self)
        return self._seen

    def add_prompt(self, tokens: int) -> None:
        """Count the tokens of its prompt, which were found out after its end."""
        self._ledger.add(self._key, Used(0, tokens, 0))

    def _is(self, used: Used) -> None:
        seen = self._seen
        if seen is None:
            self._ledger.add(self._key, used)
        elif seen != used:
            self._ledger.add(self._key, used.minus(seen))
        self._seen = used


class Ledger:
    """Used from one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._threads = Threads("usage", 1)
        self._sums: dict[UsageKey, Used] = {}
        """What is not written yet."""
        self._open: dict[Entry, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._warned = False

    def begin(self, payer: Payer, path: str, model: str, counted: Generation) -> Entry | None:
        """A client's request to a model that exists; None where such requests are not counted."""
        kind = _KINDS.get(path)
        if kind is None:
            return None
        entry = Entry(self, payer, kind, model, counted)
        self._open[entry] = None
        self._wake()
        return entry

    def forget(self, entry: Entry) -> None:
        self._open.pop(entry, None)

    def note(self, payer: Payer, path: str, model: str, usage: tuple[int, int] | None) -> None:
        """Count a request that the service has sent itself, and that was answered."""
        kind = _KINDS.get(path)
        if kind is not None:
            key = UsageKey(hour_of(time.time()), payer.project, payer.key or "", model, kind, payer.source)
            self.add(key, Used(1, *(usage or (0, 0))))

    def add(self, key: UsageKey, used: Used) -> None:
        before = self._sums.get(key)
        self._sums[key] = used if before is None else before.plus(used)
        self._wake()

    async def close(self) -> None:
        """Write what is left."""
        if self._writing is not None:
            await self._writing
        for entry in list(self._open):
            entry.look()
        await self._write()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        if self._timer is None and self._writing is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._begin)

    def _begin(self) -> None:
        for entry in list(self._open):
            entry.look()  # before there is no timer any more, which would start another
        self._timer = None
        self._writing = asyncio.get_running_loop().create_task(self._write())
        self._writing.add_done_callback(self._end)

    def _end(self, _: asyncio.Task[None]) -> None:
        self._writing = None
        if self._sums or self._open:
            self._wake()

    async def _write(self) -> None:
        sums, self._sums = self._sums, {}
        if not sums:
            return
        try:
            await self._threads.run(self._store.usage.add, sums)
            self._warned = False
        except Exception as error:  # for example a full disk
            if not self._warned:
                log.warning("what was used could not be written, and is kept in memory: %s", error)
            self._warned = True
            self._keep(sums)

    def _keep(self, sums: Mapping[UsageKey, Used]) -> None:
        for key, used in sums.items():
            if len(self._sums) < _MOST_SUMS or key in self._sums:
                self.add(key, used)
