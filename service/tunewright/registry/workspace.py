"""The workspace: the service's data folder on the local disk.

tunewright.db                the store
files/<id>                   uploads
uploads/<id>/                the parts of uploads that are not complete
jobs/<id>/                   job folders
artifacts/<sha256>/          adapters and full models; see `registry/artifacts.py`; with a bucket those used last
engines/<model>/             logs and process records of the engines
hub/                         the cache of adapters from a hub; see `registry/hub_cache.py`
token-cache/                 tokenized files; see `rows/cache.py`
run/                         process records, locks
webhooks.key                 what the secrets of webhooks are derived from; in no backup
tmp/                         unfinished files; emptied at start
backups/, replaced-*/, restore-*/    made by upgrades and restores of the database; see backup/
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

from tunewright.atomic import sync_folder
from tunewright.config import StorageOptions
from tunewright.ids import path_name
from tunewright.registry.artifacts import ArtifactStore, LocalArtifacts
from tunewright.registry.bucket import Bucket
from tunewright.registry.remote_artifacts import RemoteArtifacts
from tunewright.registry.remote_files import RemoteFiles
from tunewright.registry.removals import Removals, destroy
from tunewright.rows.cache import TokenCache


class Workspace:
    def __init__(self, path: Path, bucket: Bucket | None = None, *, files_in_bucket: bool = False) -> None:
        """`bucket` has the artifacts, and with `files_in_bucket` the files; None: they are in the data folder alone."""
        self.path = path.resolve()
        self.files = self.path / "files"
        self.uploads = self.path / "uploads"
        self.jobs = self.path / "jobs"
        self.engines = self.path / "engines"
        self.run = self.path / "run"
        self.leases = self.run / "leases"
        self.tally = self.run / "adapters.json"
        """What `engine.tally` counts."""
        self.webhook_key = self.path / "webhooks.key"
        self.hub = self.path / "hub"
        self.token_cache = TokenCache(self.path / "token-cache")
        self.suite_answers = self.path / "suite-answers"
        self.tmp = self.path / "tmp"
        self._removals = Removals(self.run, self.tmp)
        local = LocalArtifacts(self.path / "artifacts", self.tmp, self._removals)
        self.bucket_note = self.run / "bucket-owner.json"
        """As whom this service owns the bucket's prefix; see `registry/bucket_owner.py`."""
        self.remote = (
            RemoteArtifacts(bucket, local, self.tmp, self._removals, self.bucket_note)
            if bucket is not None
            else None
        )
        self.artifacts: ArtifactStore = self.remote or local
        self.remote_files = (
            RemoteFiles(bucket, self.files, self.tmp, self._removals, self.bucket_note)
            if bucket is not None and files_in_bucket
            else None
        )
        self.bucket_state = self.run / "bucket.json"
        """What the scheduler last found of the bucket; see `registry/bucket_state.py`."""

    @classmethod
    def of(cls, storage: StorageOptions) -> Self:
        """The workspace of a service that has these options."""
        if storage.artifacts is None:
            return cls(storage.data_dir)
        bucket = Bucket(storage.artifacts, storage.artifacts_endpoint)
        return cls(storage.data_dir, bucket, files_in_bucket=storage.files_in_bucket)

    def create(self) -> None:
        """Make the folders, readable by their owner alone. Raises OSError."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.files, self.uploads, self.jobs, self.engines, self.run, self.leases, self.tmp):
            folder.mkdir(mode=0o700, exist_ok=True)
        self.artifacts.create()

    def clear_unfinished(self) -> None:
        """Remove the unfinished files of a crash. Only at start, before anything writes."""
        for leftover in self.tmp.iterdir():
            destroy(leftover)

    def finish_removals(self) -> None:
        """Finish the removals that a crash interrupted."""
        self._removals.finish()

    def file(self, id: str) -> Path:
        """Where the file is, once it is on this machine (`fetch_file`)."""
        return self.files / path_name(id)

    def fetch_file(self, id: str) -> Path:
        """Bring the file to this machine, unless it is there; returns its path. It stays there while an unfinished job
        reads it, and otherwise as long as there is room. May block; raises ArtifactsUnavailable and StorageFull. Where
        it does not exist, opening it raises FileNotFoundError."""
        if self.remote_files is not None:
            with suppress(FileNotFoundError):
                self.remote_files.fetch(id)
        return self.file(id)

    def upload(self, id: str) -> Path:
        return self.uploads / path_name(id)

    def job(self, id: str) -> Path:
        return self.jobs / path_name(id)

    def heartbeat(self, process: str) -> Path:
        """The file that `api`, `scheduler` or `worker` touches while it runs; also `webhooks`."""
        return self.run / f"{process}.heartbeat"

    def engine(self, name: str) -> Path:
        folder = self.engines / file_name(name)
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def keeping(self, id: str) -> AbstractContextManager[None]:
        """Keep all processes from removing the file `id`. Hold this from before it appears until it is listed.

        It may be held several times. Waits while the file is being removed.
        """
        return self._removals.keeping(id)

    def keep_file(self, temporary: Path, id: str) -> None:
        """Move an upload, written and synced under `tmp/`, to its place, and store it in the bucket before, if there is
        one. List it while `keeping(id)`. Raises ArtifactsUnavailable."""
        if self.remote_files is not None:
            self.remote_files.upload(temporary, id)
        os.replace(temporary, self.file(id))
        sync_folder(self.files)

    def remove_file(self, id: str, is_used: Callable[[], object]) -> bool:
        """Remove the file unless `is_used()`. Returns whether it was removed."""
        if self.remote_files is not None:
            return self.remote_files.remove(id, is_used)
        return self._removals.remove(self.file(id), is_used)

    def remove_upload(self, id: str) -> bool:
        """Remove the parts of an upload that has ended. Returns whether there were any."""
        return self._removals.remove(self.upload(id), lambda: False)

    def remove_job(self, id: str) -> bool:
        """Remove the folder of a job that has ended. Returns whether there was one."""
        return self._removals.remove(self.job(id), lambda: False)


def file_name(name: str) -> str:
    """A model's name as part of a file name: quoted, or its hash where that is too long for a file system, or begins
    with a dot (as `..`, which is another folder)."""
    quoted = quote(name, safe="")
    is_name = 0 < len(quoted) <= 160 and not quoted.startswith(".")
    return quoted if is_name else hashlib.sha256(name.encode()).hexdigest()
