"""Keeps the bucket of artifacts and its cache in order: says whether the bucket is available and this service's, keeps
the cache within its size, uploads what is in the cache alone, and removes what killed uploads have left."""

from __future__ import annotations

import logging
import threading
import time

from tunewright.config import StorageOptions
from tunewright.errors import ArtifactsUnavailable
from tunewright.registry.bucket_owner import Ownership
from tunewright.registry.bucket_state import BucketState
from tunewright.registry.remote_artifacts import RemoteArtifacts
from tunewright.registry.workspace import Workspace
from tunewright.store.store import Store

log = logging.getLogger("tunewright.bucket")

_EVERY, _TIDY_EVERY = 15.0, 600.0
"""Seconds between two looks at the bucket and the cache, and between two rounds of the rest."""


class BucketKeeper:
    """A part of the scheduler, which does nothing where the artifacts are in the data folder alone. `tick()` never
    blocks: a round runs in a thread."""

    def __init__(self, options: StorageOptions, store: Store, workspace: Workspace) -> None:
        self._options = options
        self._store = store
        self._workspace = workspace
        self._due = self._tidy_due = time.monotonic()
        self._thread: threading.Thread | None = None
        self._state: BucketState | None = None
        self._is_over = False

    def tick(self) -> None:
        remote = self._workspace.remote
        running = self._thread is not None and self._thread.is_alive()
        if remote is None or running or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _EVERY
        self._thread = threading.Thread(target=self._round, args=(remote,), name="bucket", daemon=True)
        self._thread.start()

    def _round(self, remote: RemoteArtifacts) -> None:
        try:
            self.round(remote)
        except Exception:  # a full disk, say: the next round tries again
            log.exception("a round over the bucket failed")

    def round(self, remote: RemoteArtifacts) -> None:
        """Look at the bucket and the cache once."""
        try:
            remote.bucket.check()
            is_due = time.monotonic() >= self._tidy_due
            self._keep(remote, is_due)
            self._found(BucketState(True))
            self._shrink(remote)
            if is_due:
                self._tidy(remote)
                self._tidy_due = time.monotonic() + _TIDY_EVERY
        except ArtifactsUnavailable as error:
            self._found(BucketState(False, error.message))

    def _keep(self, remote: RemoteArtifacts, next_turn: bool) -> None:
        """Keep the prefix, or claim it where the bucket did not answer at the start."""
        owner = Ownership(
            remote.bucket, self._store.bucket_owners, self._workspace.path, self._workspace.bucket_note
        )
        if not owner.keep(next_turn=next_turn):
            owner.claim(self._options.take_over_artifacts, remote.stored, self._store.models.weights_in_use)

    def _found(self, state: BucketState) -> None:
        if state == self._state:
            return
        if not state.is_available:
            log.error("%s What is cached is still served.", state.reason)
        elif self._state is not None:
            log.info("the bucket of artifacts is available again")
        self._state = state
        state.write(self._workspace.bucket_state)

    def _shrink(self, remote: RemoteArtifacts) -> None:
        most = self._options.max_artifact_cache_size
        left = remote.shrink_cache(most, self._store.models.weights_at_work)
        if left > most and not self._is_over:
            log.warning(
                "the artifacts in the data folder have %d bytes, over --max-artifact-cache-size: they are in use, or "
                "not yet in the bucket",
                left,
            )
        self._is_over = left > most
        if self._workspace.remote_files is not None:
            self._workspace.remote_files.shrink_cache(
                self._options.max_file_cache_size, self._store.files.at_work
            )

    def _tidy(self, remote: RemoteArtifacts) -> None:
        uploaded = remote.upload_missing(self._store.models.weights_in_use())
        if uploaded:
            log.info("uploaded %d artifacts that were in the data folder alone", uploaded)
        files = self._workspace.remote_files
        if files is not None and (uploaded := files.upload_missing(self._store.files.ids())):
            log.info("uploaded %d files that were in the data folder alone", uploaded)
        removed = remote.remove_leftovers(time.time())
        if removed:
            log.info("removed %d objects that unfinished uploads have left in the bucket", removed)
