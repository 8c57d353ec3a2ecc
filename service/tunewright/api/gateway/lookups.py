"""What the names in requests stand for, read from the store once for all requests that ask at a time, and kept until
the database changes (docs/decisions/0034).

Whoever asks gets what the store says at some moment after the question: so a request that comes after the answer to a
change sees the change, and one that has taken its lease knows whether its adapter was loaded after that.
"""

from __future__ import annotations

import asyncio

from tunewright.api.http.threads import Threads
from tunewright.store.names import Named
from tunewright.store.store import Store

_READERS = 4
"""Threads that read; a pool of database connections has more."""
_MOST_AT_ONCE = 256
"""Names that are read in one transaction."""
_MOST_KEPT = 4096


class Lookups:
    """Used from one event loop only.

    On SQLite, names are kept until something was committed to the database, which is seen at each question, without a
    thread. Elsewhere, nothing is kept.
    """

    def __init__(self, store: Store) -> None:
        self._names = store.names
        self._changes = store.database.changes()
        self._threads = Threads("names", _READERS)
        self._version: tuple[int, int] | None = None
        """The version of the database that `_kept` is from."""
        self._kept: dict[str, Named] = {}
        self._asked: dict[str, asyncio.Future[Named]] = {}
        """The names that will be read next: their read has not begun."""
        self._reads: set[asyncio.Task[None]] = set()

    async def find(self, name: str) -> Named:
        """What the name stands for, at a moment after the call."""
        if self._changes is not None:
            version = self._changes.version()
            if version is None or version != self._version:
                self._version = version
                self._kept = {}
            elif (kept := self._kept.get(name)) is not None:
                return kept
        asked = self._asked.get(name)
        if asked is None:
            loop = asyncio.get_running_loop()
            if not self._asked:
                loop.call_soon(self._begin_reads)
            asked = self._asked[name] = loop.create_future()
        return await asyncio.shield(asked)  # others may wait for it

    def close(self) -> None:
        if self._changes is not None:
            self._changes.close()

    def _begin_reads(self) -> None:
        """Read what was asked for, unless all readers are busy: then the first to end does."""
        while self._asked and len(self._reads) < _READERS:
            names = list(self._asked)[:_MOST_AT_ONCE]
            asked = {name: self._asked.pop(name) for name in names}
            read = asyncio.get_running_loop().create_task(self._read(asked))
            self._reads.add(read)
            read.add_done_callback(self._end_read)

    def _end_read(self, read: asyncio.Task[None]) -> None:
        self._reads.discard(read)
        self._begin_reads()

    async def _read(self, asked: dict[str, asyncio.Future[Named]]) -> None:
        version = self._changes.version() if self._changes is not None else None
        try:
            found = await self._threads.run(self._names.read, list(asked))
        except Exception as error:
            for waited in asked.values():
                waited.set_exception(error)
                waited.exception()  # whoever asked may have gone
            return
        for name, waited in asked.items():
            waited.set_result(found[name])
        if version is not None and version == self._version:
            self._keep(found)

    def _keep(self, found: dict[str, Named]) -> None:
        """Keep what was read after `_version` was seen. If something was committed meanwhile, the next question finds
        another version."""
        self._kept |= found
        while len(self._kept) > _MOST_KEPT:
            del self._kept[next(iter(self._kept))]
