"""Whose a prefix of a bucket is: one database's, whose service alone stores and removes things there.

The object `owner.json` there, the mark, names the owner: an identity that the database has for this prefix. It also has
a turn, which the owner changes every ten minutes after it has noted the next one in its database. So a copy of a
database, which has the same identity, is told from the one that goes on: a mark with a turn that one has not noted is
not one's own.

The note, a file in the data folder, says to all processes of the service who they are. `check_note` is asked before
anything is stored or removed.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunewright.atomic import write_atomically
from tunewright.errors import ArtifactsUnavailable
from tunewright.registry.bucket import Bucket

MARK = "owner.json"
UNMARKED = "unmarked"
"""What a prefix is taken over from that has artifacts and no mark."""
_OPTION = "--take-over-artifacts"
_INSTEAD = "Give this service a prefix of its own (--artifacts)"
_THEN = "What this database does not list is removed from there as unused, a day later by default"


@dataclass(frozen=True)
class BucketIdentity:
    """As whom a database owns a prefix."""

    owner: str
    turns: tuple[str, str]
    """The turns that its mark may have."""
    since: float
    """Unix time of the claim, or of the last restore into the database."""

    def has_written(self, mark: Mark) -> bool:
        return mark.owner == self.owner and mark.turn in self.turns


class Identities(Protocol):
    """Where a database notes its identities (`store.bucket_owners`)."""

    def of(self, place: str) -> BucketIdentity: ...

    def begin_turn(self, place: str, current: str, following: str) -> None: ...

    def renew(self, place: str) -> BucketIdentity: ...


class Mark(BaseModel):
    model_config = ConfigDict(frozen=True)

    format: int = Field(1, le=1)
    owner: str
    turn: str
    service: str
    """The machine and the data folder, for messages."""
    seen_at: float
    """Unix time."""

    def __str__(self) -> str:
        minutes = max(0, int(time.time() - self.seen_at)) // 60
        return f"{self.service}, last seen {minutes} minutes ago"


@dataclass(frozen=True)
class Note:
    owner: str
    since: float
    """As in BucketIdentity."""
    lost: str | None = None
    """Why the prefix is not this service's, once that was found."""

    def write(self, path: Path) -> None:
        write_atomically(path, json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """None where no service has noted anything."""
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None

    @classmethod
    def since_of(cls, path: Path) -> float:
        """Since when the prefix is this service's (Unix time), 0 where no service has noted it."""
        note = cls.read(path)
        return note.since if note is not None else 0.0


def read_mark(bucket: Bucket) -> Mark | None:
    """Raises ArtifactsUnavailable, also where the mark cannot be read."""
    try:
        text = bucket.read(MARK)
    except FileNotFoundError:
        return None
    try:
        return Mark.model_validate_json(text)
    except ValidationError as error:
        raise ArtifactsUnavailable(
            f"{MARK} in {bucket}, which says whose the artifacts there are, cannot be read: it was damaged, or made by"
            " a newer Tunewright. Put it back from a copy, or remove it.",
            is_refusal=True,
        ) from error


def check_note(bucket: Bucket, path: Path) -> None:
    """Raises ArtifactsUnavailable where this service does not own the bucket's prefix now. Nothing is asked where no
    service has noted who it is."""
    note = Note.read(path)
    if note is None:
        return
    if note.lost is not None:
        raise ArtifactsUnavailable(note.lost, is_refusal=True)
    mark = read_mark(bucket)
    if mark is None or mark.owner != note.owner:
        whose = f"another service's ({mark})" if mark is not None else "not this service's yet"
        raise ArtifactsUnavailable(
            f"The artifacts in {bucket} are {whose}: nothing is stored or removed there.", is_refusal=True
        )


class Ownership:
    """Claims a prefix at the start of the service, and keeps it. Used by one process at a time."""

    def __init__(self, bucket: Bucket, identities: Identities, data_dir: Path, note: Path) -> None:
        self._bucket = bucket
        self._identities = identities
        self._service = f"{socket.gethostname()}: {data_dir}"
        self._note = note

    def note(self) -> None:
        """Say to all processes who they are, whether or not the bucket can be reached."""
        found = self._identities.of(self._bucket.url)
        Note(found.owner, found.since).write(self._note)

    def claim(
        self,
        take_over: str | None,
        stored: Callable[[], Collection[str]],
        listed: Callable[[], Collection[str]],
    ) -> None:
        """Put this database's mark there. Raises ArtifactsUnavailable, a refusal, where the prefix is another's and
        `take_over` is not that one's id; or where it has no mark, artifacts are `stored` there, none of which this
        database has `listed`, and `take_over` is not `UNMARKED`."""
        found, mark = self._identities.of(self._bucket.url), read_mark(self._bucket)
        if mark is not None and not found.has_written(mark):
            if take_over != mark.owner:
                raise self._belongs_to(mark, mark.owner == found.owner)
            found = self._identities.renew(self._bucket.url)
        elif mark is None and take_over != UNMARKED:
            there = set(stored())
            if there and there.isdisjoint(listed()):
                raise self._unknown(len(there))
        ours = mark if mark is not None and found.has_written(mark) else None
        self._write(found, ours.turn if ours is not None else found.turns[0])
        self.note()
        self._check()

    def keep(self, *, next_turn: bool) -> bool:
        """Look whether the mark is still this database's, and change its turn where `next_turn`. False where there is
        none: then the prefix is to be claimed. Raises ArtifactsUnavailable where it is another's, from then on until
        the next start of the service."""
        note = Note.read(self._note)
        if note is not None and note.lost is not None:
            raise ArtifactsUnavailable(note.lost, is_refusal=True)
        mark = self._check()
        if mark is not None and next_turn:
            self._write(self._identities.of(self._bucket.url), mark.turn)
        return mark is not None

    def lose(self, reason: str) -> None:
        """Have nothing stored or removed from now on until the next start."""
        found = self._identities.of(self._bucket.url)
        Note(found.owner, found.since, reason).write(self._note)

    def _check(self) -> Mark | None:
        mark, found = read_mark(self._bucket), self._identities.of(self._bucket.url)
        if mark is not None and not found.has_written(mark):
            error = self._belongs_to(mark, mark.owner == found.owner)
            self.lose(
                f"{error.message} Nothing is stored or removed there, and what is cached is still served."
            )
            raise error
        return mark

    def _write(self, found: BucketIdentity, turn: str) -> None:
        following = secrets.token_hex(8)
        self._identities.begin_turn(self._bucket.url, turn, following)
        mark = Mark(format=1, owner=found.owner, turn=following, service=self._service, seen_at=time.time())
        self._bucket.write(MARK, mark.model_dump_json().encode())

    def _belongs_to(self, mark: Mark, is_copy: bool) -> ArtifactsUnavailable:
        whose = (
            "a service whose database is a copy of this one, or was copied to it"
            if is_copy
            else "another service"
        )
        return ArtifactsUnavailable(
            f"The artifacts in {self._bucket} belong to {whose} ({mark}). {_INSTEAD}. Where that service is stopped for"
            f" good, its data was restored here or its database has moved, start this one with {_OPTION} {mark.owner}."
            f" {_THEN}.",
            is_refusal=True,
        )

    def _unknown(self, count: int) -> ArtifactsUnavailable:
        return ArtifactsUnavailable(
            f"{self._bucket} has {count} artifacts, of which this database lists none: they may be another service's,"
            f" of an earlier version. {_INSTEAD}, or start it with {_OPTION} {UNMARKED} where they are nobody else's."
            f" {_THEN}.",
            is_refusal=True,
        )
