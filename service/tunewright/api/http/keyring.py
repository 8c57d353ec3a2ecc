"""The API keys that requests come with, kept in memory until the database changes (as names are, docs/decisions/0034):
a key that was revoked is refused by the next request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence

from tunewright.api.gateway.lookups import Lookups
from tunewright.store.keys import ApiKey, hash_of
from tunewright.store.limits import NO_LIMITS, Limits
from tunewright.store.store import Store

log = logging.getLogger("tunewright.api")

_USE_IS_RECORDED_EVERY = 3600.0
_WRITTEN_EVERY = 60.0
"""Seconds. What is written makes everything in memory be read anew, so that uses are written together and rarely."""
_LOOKED_EVERY = 1.0
"""Seconds between two looks for a first key, where the database does not say that it has changed."""
_ANY = ""


class Keyring:
    """Used from one event loop only. `store` should have connections of its own, as those of names."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._is_told = store.database.is_sqlite
        self._keys = Lookups(self._read_keys, store.database.changes())
        self._projects = Lookups(self._read_projects, store.database.changes())
        self._is_needed = False
        self._looked_at = -_LOOKED_EVERY
        self._used: dict[str, float] = {}
        self._written_at = time.time()
        self._writing: asyncio.Task[None] | None = None

    async def find(self, key: bytes) -> ApiKey | None:
        """The key, if it is not revoked; it may have expired."""
        return await self._keys.find(hash_of(key.decode("latin-1")))

    async def is_needed(self) -> bool:
        """Whether there has ever been a key: then nothing is answered without one, not even after the last is gone."""
        now = time.monotonic()
        if not self._is_needed and (self._is_told or now - self._looked_at >= _LOOKED_EVERY):
            self._looked_at = now
            self._is_needed = await self._projects.find(_ANY) is not None
        return self._is_needed

    async def has_project(self, id: str) -> bool:
        """Whether there is such a project that is not archived."""
        return bool(id) and await self._projects.find(id) is not None

    async def limits_of(self, project: str) -> Limits:
        """Of a project that exists."""
        return await self._projects.find(project) or NO_LIMITS

    def note_use(self, key: ApiKey) -> None:
        now = time.time()
        if key.last_used_at is None or key.last_used_at < now - _USE_IS_RECORDED_EVERY:
            self._used[key.id] = now
        if self._used and now - self._written_at > _WRITTEN_EVERY and self._writing is None:
            self._written_at = now
            used, self._used = self._used, {}
            self._writing = asyncio.create_task(self._write(used, now - _USE_IS_RECORDED_EVERY))

    async def _write(self, used: Mapping[str, float], unless_since: float) -> None:
        try:
            await asyncio.to_thread(self._store.keys.used, used, unless_since)
        except Exception as error:  # for example a full disk
            log.warning("when keys were used last could not be recorded: %s", error)
        finally:
            self._writing = None

    def close(self) -> None:
        self._keys.close()
        self._projects.close()

    def _read_keys(self, hashes: Sequence[str]) -> dict[str, ApiKey | None]:
        found = self._store.keys.by_hashes(hashes)
        return {hash: found.get(hash) for hash in hashes}

    def _read_projects(self, ids: Sequence[str]) -> dict[str, Limits | None]:
        def limits(id: str) -> Limits | None:
            project = self._store.projects.get(id)
            return None if project is None or project.archived_at is not None else project.limits

        any_key = NO_LIMITS if _ANY in ids and self._store.keys.any() else None
        return {id: any_key if id == _ANY else limits(id) for id in ids}
