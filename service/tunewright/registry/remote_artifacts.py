"""The artifact store in a bucket, with a cache in the data folder.

    owner.json                               whose all of this is; see `registry/bucket_owner.py`
    manifests/<sha256>.json                  which files the artifact has, and where
    objects/<sha256>/<upload>/<name>         the files

The manifest is written last and removed first, so an artifact without one does not exist: what a killed process has
uploaded is removed by `remove_leftovers`. Each upload has a folder of its own, since two folders of the same hash may
differ in the part of an adapter's config that the hash leaves out.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunewright.atomic import publish_folder
from tunewright.errors import ArtifactsUnavailable, StorageFull
from tunewright.ids import path_name
from tunewright.registry.artifacts import LocalArtifacts, StoredArtifact, publish_artifact
from tunewright.registry.bucket import Bucket
from tunewright.registry.bucket_owner import Note, check_note
from tunewright.registry.caching import SPARE, shrink, touch
from tunewright.registry.content import artifact_files, artifact_sha256, folder_size
from tunewright.registry.removals import Removals, destroy
from tunewright.registry.scratch import scratch_folder

log = logging.getLogger("tunewright.registry")

_IN_USE = 60.0
"""Seconds after its last use in which a cached artifact stays: who has fetched it is about to open it."""
_LEFT = 86_400.0
"""Seconds after which what belongs to no artifact is taken for what a killed process has left."""
_MANIFESTS, _OBJECTS = "manifests/", "objects/"


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True)

    format: int = Field(1, le=1)
    upload: str = Field(pattern=r"^[0-9a-f]{16}$")
    """The folder of its files."""
    stored_at: float
    """Unix time."""
    files: dict[str, int]
    """Their sizes in bytes, by name."""

    @property
    def bytes(self) -> int:
        return sum(self.files.values())


class RemoteArtifacts:
    """An `ArtifactStore`. `cache` has the artifacts that this machine has fetched or made; the time of a folder there
    is that of its last use."""

    def __init__(
        self, bucket: Bucket, cache: LocalArtifacts, tmp: Path, removals: Removals, note: Path
    ) -> None:
        """`note`: the file that says as whom this service owns the bucket's prefix, where it has noted that."""
        self.bucket = bucket
        self._note = note
        self._cache = cache
        self._tmp = tmp
        self._removals = removals
        self._fetching: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def create(self) -> None:
        self._cache.create()

    def put(self, folder: Path, kept: ExitStack | None = None) -> str:
        sha256 = artifact_sha256(folder)
        if kept is not None:
            kept.enter_context(self.keeping(sha256))
        with self.keeping(sha256):
            check_note(self.bucket, self._note)
            cached = self.local(sha256)
            if self._manifest(sha256) is None:
                self._upload(cached if cached.is_dir() else folder, sha256)
                self._cache.create()
                publish_artifact(folder, cached, self._tmp)
        return sha256

    def local(self, sha256: str) -> Path:
        return self._cache.local(sha256)

    def fetch(self, sha256: str) -> Path:
        folder = self.local(sha256)
        if touch(folder):
            return folder
        with self._fetching[sha256], self.keeping(sha256):
            if touch(folder):  # another thread has fetched it
                return folder
            with scratch_folder(self._tmp, "fetch-") as temporary:
                self.copy(sha256, temporary)
                self._cache.create()  # a cache may be removed as a whole
                try:
                    publish_folder(temporary, folder)
                except OSError:
                    if not folder.exists():  # else another process has fetched it
                        raise
        return folder

    def copy(self, sha256: str, folder: Path) -> None:
        """Write the artifact's files to a folder, which exists and is empty, and check their hash. Raises
        FileNotFoundError where it is not in the bucket, and StorageFull; then files may be left there."""
        manifest = self._manifest(sha256)
        if manifest is None:
            raise FileNotFoundError(2, f"{self.bucket} has no artifact of this hash", sha256)
        if manifest.bytes + SPARE > shutil.disk_usage(folder).free:
            raise StorageFull(
                f"There is no room on the disk for the artifact {sha256}: {manifest.bytes} bytes."
            )
        for name, size in manifest.files.items():
            self.bucket.download(f"{_OBJECTS}{sha256}/{manifest.upload}/{name}", folder / name)
            if (folder / name).stat().st_size != size:
                raise self._damaged(sha256, f"{name} has another size")
        try:
            found = artifact_sha256(folder)
        except ValueError as error:
            raise self._damaged(sha256, str(error)) from error
        if found != sha256:
            raise self._damaged(sha256, f"the hash of its files is {found}")

    def keeping(self, sha256: str) -> AbstractContextManager[None]:
        return self._removals.keeping(sha256)

    def remove(self, sha256: str, is_used: Callable[[], object]) -> bool:
        """As in `ArtifactStore`. Where the bucket is unavailable nothing is removed, and a later round of the retention
        removes it."""
        with self._removals.alone(sha256):
            if is_used():
                return False
            try:
                check_note(self.bucket, self._note)
                was_there = self._remove_objects(sha256)
            except ArtifactsUnavailable as error:
                log.warning("the artifact %s is removed later: %s", sha256, error)
                return False
            cached = self.local(sha256)
            doomed = self._removals.move_away(cached) if cached.exists() else None
        if doomed is not None:
            destroy(doomed)
        return was_there or doomed is not None

    def hashes(self) -> set[str]:
        return self.stored() | self._cache.hashes()

    def stored(self) -> set[str]:
        """The hashes of those in the bucket."""
        names = (Path(name).stem for name in self.bucket.find(_MANIFESTS))
        return {name for name in names if len(name) == 64 and set(name) <= set("0123456789abcdef")}

    def stat(self, sha256: str) -> StoredArtifact:
        manifest = self._manifest(sha256)
        if manifest is None:  # it is uploaded later
            return self._cache.stat(sha256)
        # What came to this database by a claim or a restore has a day from then on, too.
        return StoredArtifact(manifest.bytes, max(manifest.stored_at, Note.since_of(self._note)))

    # what the scheduler does now and then

    def shrink_cache(self, most: int, in_use: Callable[[], Collection[str]]) -> int:
        """Remove the artifacts used longest ago from this machine until those left have `most` bytes. Returns how many
        bytes there are then.

        Those that are held, were used within the last minute, or are among `in_use()` stay, and those that are not in
        the bucket.
        """
        found = []
        for sha256 in self._cache.hashes():
            with suppress(FileNotFoundError):  # removed just now
                folder = self.local(sha256)
                found.append((folder.stat().st_mtime, folder_size(folder), sha256))
        return shrink(found, most, _IN_USE, lambda sha256: self._evict(sha256, in_use))

    def upload_missing(self, used: Collection[str]) -> int:
        """Upload what was stored before there was a bucket, or restored from an archive. Returns how many."""
        check_note(self.bucket, self._note)
        count = 0
        for sha256 in (self._cache.hashes() & set(used)) - self.stored():
            with self.keeping(sha256):
                folder = self.local(sha256)
                if folder.is_dir() and self._manifest(sha256) is None:
                    self._upload(folder, sha256)
                    count += 1
        return count

    def remove_leftovers(self, now: float) -> int:
        """Remove from the bucket what uploads have left that were killed more than a day ago. Returns the number of
        objects."""
        check_note(self.bucket, self._note)
        uploads: defaultdict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for name, stored in self.bucket.find(_OBJECTS).items():
            sha256, _, rest = name.removeprefix(_OBJECTS).partition("/")
            if now - stored.modified > _LEFT:
                uploads[sha256][rest.partition("/")[0]].append(name)
        count, whole = 0, self.stored()
        for sha256, found in uploads.items():
            if sha256 in whole and len(found) == 1:
                continue  # those of its manifest
            with self._removals.alone(sha256, wait=False) as is_ours:
                manifest = self._manifest(sha256) if is_ours else None
                left = [
                    name
                    for upload, names in found.items()
                    if is_ours and (manifest is None or upload != manifest.upload)
                    for name in names
                ]
                self.bucket.remove(left)
                count += len(left)
        for key, id, began in self.bucket.unfinished_uploads():
            if now - began > _LEFT:
                with suppress(FileNotFoundError):
                    self.bucket.abort_upload(key, id)
        return count

    def _evict(self, sha256: str, in_use: Callable[[], Collection[str]]) -> bool:
        with self._removals.alone(sha256, wait=False) as is_ours:
            cached = self.local(sha256)
            if not is_ours or not cached.exists() or sha256 in in_use() or self._manifest(sha256) is None:
                return False
            doomed = self._removals.move_away(cached)
        destroy(doomed)
        log.info("removed artifact %s from the cache (--max-artifact-cache-size)", sha256)
        return True

    # the bucket

    def _manifest(self, sha256: str) -> _Manifest | None:
        try:
            text = self.bucket.read(f"{_MANIFESTS}{path_name(sha256)}.json")
        except FileNotFoundError:
            return None
        try:
            manifest = _Manifest.model_validate_json(text)
            if not manifest.files or any(Path(name).name != name for name in manifest.files):
                raise ValueError("its files have no plain names")
        except (ValidationError, ValueError) as error:
            raise self._damaged(sha256, "its manifest cannot be read") from error
        return manifest

    def _upload(self, folder: Path, sha256: str) -> None:
        upload = secrets.token_hex(8)
        files = {}
        for file in artifact_files(folder):
            self.bucket.upload(file, f"{_OBJECTS}{sha256}/{upload}/{file.name}")
            files[file.name] = file.stat().st_size
        check_note(self.bucket, self._note)  # the files may have taken an hour
        manifest = _Manifest(format=1, upload=upload, stored_at=time.time(), files=files)
        self.bucket.write(f"{_MANIFESTS}{sha256}.json", manifest.model_dump_json().encode())

    def _remove_objects(self, sha256: str) -> bool:
        manifest = f"{_MANIFESTS}{path_name(sha256)}.json"
        try:
            was_there = bool(self.bucket.read(manifest))
        except FileNotFoundError:
            was_there = False
        self.bucket.remove([manifest])
        self.bucket.remove(list(self.bucket.find(f"{_OBJECTS}{sha256}/")))
        return was_there

    def _damaged(self, sha256: str, what: str) -> ArtifactsUnavailable:
        return ArtifactsUnavailable(
            f"The artifact {sha256} in {self.bucket} is damaged: {what}. Put its objects back from a copy.",
            is_refusal=True,
        )
