"""API keys: stored as hashes, found by them. A key is 256 random bits, so that a plain SHA-256 cannot be guessed back.

A revoked key keeps its row: the service asks for keys as soon as there has been one.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from sqlalchemy import ColumnElement, Connection, Row, exists, insert, null, or_, select, update

from tunewright.ids import new_id
from tunewright.store.database import Database
from tunewright.store.limits import NO_LIMITS, Limits
from tunewright.store.paging import page
from tunewright.store.tables import api_keys, projects

_PREFIX = "sk-tw-"
_SHOWN = 4


class Scope(StrEnum):
    """What a key may do in its project."""

    READ = "read"
    INFER = "infer"
    TRAIN = "train"
    ADMIN = "admin"


@dataclass(frozen=True)
class ApiKey:
    """Times are Unix seconds."""

    seq: int
    id: str
    project: str | None
    """None: the key of an admin, who may do everything in all projects."""
    name: str
    hash: str
    redacted: str
    scopes: tuple[Scope, ...]
    created_at: float
    expires_at: float | None
    replaced_until: float | None
    """Until when it is taken beside the key that has replaced it."""
    revoked_at: float | None
    last_used_at: float | None
    limits: Limits = NO_LIMITS
    project_limits: Limits = NO_LIMITS
    """Those of its project, where they were read with it."""

    @classmethod
    def of(cls, row: Row[Any]) -> Self:
        values = dict(row._mapping)
        values |= {name: Limits.of(values[name]) for name in ("limits", "project_limits") if name in values}
        return cls(**{**values, "scopes": tuple(Scope(scope) for scope in row.scopes)})

    @property
    def ends_at(self) -> float | None:
        """When it is not taken any more, if it is not revoked before."""
        return min((at for at in (self.expires_at, self.replaced_until) if at is not None), default=None)

    def is_valid(self, now: float) -> bool:
        return self.revoked_at is None and (self.ends_at is None or now < self.ends_at)


NewKey = tuple[ApiKey, str]
"""A key's record, and the key itself, which is known this once."""


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()


class KeyStore:
    """On a project's connection: the keys of that project."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        name: str,
        scopes: Collection[Scope],
        *,
        expires_at: float | None = None,
        for_admin: bool = False,
        limits: Limits = NO_LIMITS,
    ) -> NewKey:
        """A key of this store's project or, where the store has none, of an admin, which has to be said."""
        if for_admin != (self._database.project is None):
            raise ValueError("a project's key is made in the store of the project, an admin's in that of all")
        with self._database.begin() as connection:
            return _insert(connection, name, scopes, expires_at, limits)

    def get(self, id: str) -> ApiKey | None:
        """A key that is not revoked."""
        with self._database.read() as connection:
            row = connection.execute(select(api_keys).where(self._mine(), api_keys.c.id == id)).one_or_none()
        return ApiKey.of(row) if row else None

    def list(self, *, after: str | None = None, limit: int = 10**6) -> tuple[Sequence[ApiKey], bool]:
        """A page of the keys that are not revoked, newest first, and whether there are more."""
        query = select(api_keys).where(self._mine())
        rows, more = page(self._database, query, api_keys, after=after, limit=limit)
        return [ApiKey.of(row) for row in rows], more

    def limit(self, id: str, limits: Limits) -> ApiKey | None:
        """Give the key these limits in the place of all that it has. None where there is no such key."""
        changed = (
            update(api_keys).where(self._mine(), api_keys.c.id == id).values(limits=limits.stored() or null())
        )
        with self._database.begin() as connection:
            row = connection.execute(changed.returning(api_keys)).one_or_none()
        return ApiKey.of(row) if row else None

    def rotate(self, id: str, *, overlap: float = 0.0) -> NewKey | None:
        """A new key in the place of this one: with its name and scopes, valid for as long as it was from its creation.
        The old one is refused after `overlap` seconds. None where there is no such key.

        Within its overlap it can be rotated again, by who has lost the answer, say: no later end comes of that."""
        now = time.time()
        with self._database.begin() as connection:
            row = connection.execute(
                select(api_keys).where(self._mine(), api_keys.c.id == id).with_for_update()
            ).one_or_none()
            if row is None:
                return None
            old = ApiKey.of(row)
            expires_at = now + (old.expires_at - old.created_at) if old.expires_at is not None else None
            ends: dict[str, float] = {"revoked_at": now}
            if overlap > 0:
                until = now + overlap
                ends = {"replaced_until": min(until, old.replaced_until or until)}
            connection.execute(update(api_keys).where(api_keys.c.id == id).values(**ends))
            return _insert(connection, old.name, old.scopes, expires_at, old.limits)

    def revoke(self, id: str) -> bool:
        """Refuse the key from now on. False where there is no such key."""
        revoked = update(api_keys).where(self._mine(), api_keys.c.id == id).values(revoked_at=time.time())
        with self._database.begin() as connection:
            return connection.execute(revoked).rowcount > 0

    def by_hashes(self, hashes: Collection[str]) -> Mapping[str, ApiKey]:
        """The keys with these hashes that were not revoked and whose project is not archived."""
        query = (
            select(api_keys, projects.c.limits.label("project_limits"))
            .outerjoin(projects, projects.c.id == api_keys.c.project)
            .where(api_keys.c.hash.in_(hashes), api_keys.c.revoked_at.is_(None))
            .where(projects.c.archived_at.is_(None))
        )
        with self._database.read() as connection:
            return {row.hash: ApiKey.of(row) for row in connection.execute(query)}

    def any(self) -> bool:
        """Whether there has ever been a key."""
        with self._database.read() as connection:
            return bool(connection.scalar(select(exists(select(api_keys.c.id)))))

    def used(self, times: Mapping[str, float], unless_since: float) -> None:
        """Record when keys were used, of those whose last use was recorded before `unless_since`."""
        with self._database.begin() as connection:
            for id, at in times.items():
                is_due = or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < unless_since)
                connection.execute(
                    update(api_keys).where(api_keys.c.id == id, is_due).values(last_used_at=at)
                )

    def _mine(self) -> ColumnElement[bool]:
        """The keys that can be listed here: an admin's where the store is that of all projects."""
        not_revoked = api_keys.c.revoked_at.is_(None)
        return not_revoked & api_keys.c.project.is_(None) if self._database.project is None else not_revoked


def _insert(
    connection: Connection, name: str, scopes: Collection[Scope], expires_at: float | None, limits: Limits
) -> NewKey:
    key = _PREFIX + secrets.token_urlsafe(32)
    values = {
        "id": new_id("key"),
        "name": name,
        "hash": hash_of(key),
        "redacted": f"{_PREFIX}...{key[-_SHOWN:]}",
        "scopes": sorted(scopes),
        "created_at": time.time(),
        "expires_at": expires_at,
        "limits": limits.stored() or null(),
    }
    row = connection.execute(insert(api_keys).values(**values).returning(api_keys)).one()
    return ApiKey.of(row), key
