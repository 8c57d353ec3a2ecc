"""What the names in requests stand for, read from the store once for all requests that ask at a time, and kept until
the database changes (docs/decisions/0034).

Whoever asks gets what the store says at some moment after the question: so a request that comes after the answer to a
change sees the change, and one that has taken its lease knows whether its adapter was loaded after that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from tunewright.api.http.threads import Threads
from tunewright.store.names import Named
from tunewright.store.sqlite_file import Changes
from tunewright.store.store import Store

Asked = TypeVar("Asked", bound=Hashable)
Found = TypeVar("Found")
InProject = tuple[str | None, str]
"""A name, and the project in which it is asked for; None: what the service itself asks for, by a model's own name."""

_READERS = 4
"""Threads that read; a pool of database connections has more."""
_MOST_AT_ONCE = 256
"""Names that are read in one transaction."""
_MOST_KEPT = 4096


def names_of(store: Store) -> Callable[[Sequence[InProject]], dict[InProject, Named]]:
    """Reads what names stand for in their projects."""

    def read(asked: Sequence[InProject]) -> dict[InProject, Named]:
        found: dict[InProject, Named] = {}
        for project in {project for project, _ in asked}:
            seen = store if project is None else store.of(project)
            named = seen.names.read([name for of, name in asked if of == project], of_jobs=project is None)
            found |= {(project, name): what for name, what in named.items()}
        return found

    return read


class Lookups(Generic[Asked, Found]):
    """Used from one event loop; what another one asks meanwhile is read for it alone. `read` finds all that it is asked
    for; `changes` are those of its database.

    On SQLite, names are kept until something was committed to the database, which is seen at each question, without a
    thread. Elsewhere, nothing is kept.
    """

    def __init__(
        self, read: Callable[[Sequence[Asked]], Mapping[Asked, Found]], changes: Changes | None
    ) -> None:
        self._read_all = read
        self._changes = changes
        self._threads = Threads("names", _READERS)
        self._version: tuple[int, int] | None = None
        """The version of the database that `_kept` is from."""
        self._kept: dict[Asked, Found] = {}
        self._asked: dict[Asked, asyncio.Future[Found]] = {}
        """The names that will be read next: their read has not begun."""
        self._reads: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def find(self, name: Asked) -> Found:
        """What the name stands for, at a moment after the call."""
        if not self._is_own(asyncio.get_running_loop()):
            return (await asyncio.to_thread(self._read_all, [name]))[name]
        if self._changes is not None:
            version = self._changes.version()
            if version is None or version != self._version:
                self._version = version
                self._kept = {}
            elif name in self._kept:
                return self._kept[name]
        asked = self._asked.get(name)
        if asked is None:
            loop = asyncio.get_running_loop()
            if not self._asked:
                loop.call_soon(self._begin_reads)
            asked = self._asked[name] = loop.create_future()
        return await asyncio.shield(asked)  # others may wait for it

    def _is_own(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether it is used from this event loop: the first one, and the next one where that is closed."""
        if self._loop is None or self._loop.is_closed():
            self._loop = loop
            self._asked.clear()
            self._reads.clear()
        return self._loop is loop

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

    async def _read(self, asked: dict[Asked, asyncio.Future[Found]]) -> None:
        version = self._changes.version() if self._changes is not None else None
        try:
            found = await self._threads.run(self._read_all, list(asked))
        except Exception as error:
            for waited in asked.values():
                waited.set_exception(error)
                waited.exception()  # whoever asked may have gone
            return
        for name, waited in asked.items():
            waited.set_result(found[name])
        if version is not None and version == self._version:
            self._keep(found)

    def _keep(self, found: Mapping[Asked, Found]) -> None:
        """Keep what was read after `_version` was seen. If something was committed meanwhile, the next question finds
        another version."""
        self._kept |= found
        while len(self._kept) > _MOST_KEPT:
            del self._kept[next(iter(self._kept))]
