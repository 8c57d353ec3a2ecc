"""Uploaded files and results in a bucket, with the folder `files` of the data folder as a cache.

    files/<id>/<sha256>        the bytes

An object appears as a whole, before the file is listed in the database, and is removed after its row. What a killed
process has left, objects of ids that are not listed, the retention removes when it is a day old.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from tunewright.errors import ArtifactsUnavailable, StorageFull
from tunewright.ids import path_name
from tunewright.registry.bucket import Bucket, StoredObject
from tunewright.registry.bucket_owner import Note, check_note
from tunewright.registry.caching import SPARE, shrink, touch
from tunewright.registry.removals import Removals, destroy
from tunewright.registry.scratch import scratch_folder

log = logging.getLogger("tunewright.registry")

_IN_USE = 600.0
"""Seconds after its last use in which a cached file stays: who has fetched it is about to open it."""
_FILES = "files/"


class RemoteFiles:
    """The files of a service in its prefix of the bucket. Any method may block, and raises ArtifactsUnavailable where
    the bucket does not answer. The time of a file in `cache` is that of its last use."""

    def __init__(self, bucket: Bucket, cache: Path, tmp: Path, removals: Removals, note: Path) -> None:
        self._bucket = bucket
        self._cache = cache
        self._tmp = tmp
        self._removals = removals
        self._note = note
        self._fetching: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def upload(self, file: Path, id: str) -> None:
        """Store a file's bytes; the same again changes nothing. Call it while `keeping` the id, before it is listed."""
        check_note(self._bucket, self._note)
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        name, there = f"{_prefix(id)}{sha256}", self._objects(id)
        if name not in there:
            self._bucket.upload(file, name)
        self._bucket.remove([other for other in there if other != name])  # of a publication that was killed

    def fetch(self, id: str) -> None:
        """Bring a file into the cache, unless it is there. Raises FileNotFoundError where it does not exist, and
        StorageFull."""
        path = self._cache / path_name(id)
        if touch(path):
            return
        with self._fetching[id], self._removals.keeping(id):
            if touch(path):  # another thread has fetched it
                return
            with scratch_folder(self._tmp, "fetch-") as folder:
                self.copy(id, folder / "file")
                os.replace(folder / "file", path)

    def copy(self, id: str, target: Path) -> None:
        """Write a file's bytes to a file that does not exist, and compare their hash. Errors as of `fetch`."""
        found = self._objects(id)
        if not found:
            raise FileNotFoundError(2, f"{self._bucket} has no file of this id", id)
        name = max(found, key=lambda one: found[one].modified)
        if found[name].bytes + SPARE > shutil.disk_usage(target.parent).free:
            raise StorageFull(f"There is no room on the disk for the file {id}: {found[name].bytes} bytes.")
        self._bucket.download(name, target)
        with target.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        if sha256 != name.rpartition("/")[2]:
            raise ArtifactsUnavailable(
                f"The file {id} in {self._bucket} is damaged: its hash is {sha256}. Put its object back from a copy.",
                is_refusal=True,
            )

    def remove(self, id: str, is_used: Callable[[], object]) -> bool:
        """Remove a file from the bucket and the cache unless `is_used()`. Where the bucket is unavailable nothing is
        removed, and a later round of the retention removes it."""
        with self._removals.alone(id):
            if is_used():
                return False
            try:
                check_note(self._bucket, self._note)
                found = self._objects(id)
                self._bucket.remove(list(found))
            except ArtifactsUnavailable as error:
                log.warning("the file %s is removed later: %s", id, error)
                return False
            cached = self._cache / path_name(id)
            doomed = self._removals.move_away(cached) if cached.exists() else None
        if doomed is not None:
            destroy(doomed)
        return bool(found) or doomed is not None

    def stored(self) -> dict[str, float]:
        """The ids of the files in the bucket, and since when each is there (Unix time), or may be this database's."""
        since = Note.since_of(self._note)
        return {
            name.removeprefix(_FILES).partition("/")[0]: max(one.modified, since)
            for name, one in self._bucket.find(_FILES).items()
        }

    def shrink_cache(self, most: int, in_use: Callable[[], Collection[str]]) -> int:
        """Remove the files used longest ago from this machine until those left have `most` bytes. Returns how many
        bytes there are then.

        Those that are held, were used within the last ten minutes, are among `in_use()`, or are not in the bucket stay.
        """
        found = []
        for path in self._cache.glob("file-*"):
            with suppress(FileNotFoundError):  # removed just now
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path.name))
        return shrink(found, most, _IN_USE, lambda id: self._evict(id, in_use))

    def upload_missing(self, listed: Collection[str]) -> int:
        """Upload what was stored before files were in the bucket, or restored from an archive. Returns how many."""
        count, there = 0, self.stored()
        for id in set(listed) - there.keys():
            path = self._cache / path_name(id)
            with self._removals.keeping(id):
                if path.is_file():
                    self.upload(path, id)
                    count += 1
        return count

    def _evict(self, id: str, in_use: Callable[[], Collection[str]]) -> bool:
        with self._removals.alone(id, wait=False) as is_ours:
            cached = self._cache / path_name(id)
            if not is_ours or not cached.exists() or id in in_use() or not self._objects(id):
                return False
            doomed = self._removals.move_away(cached)
        destroy(doomed)
        log.info("removed %s from the data folder (--max-file-cache-size)", id)
        return True

    def _objects(self, id: str) -> dict[str, StoredObject]:
        return self._bucket.find(_prefix(id))


def _prefix(id: str) -> str:
    return f"{_FILES}{path_name(id)}/"
