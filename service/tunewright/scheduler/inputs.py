"""Brings the files that jobs read to this machine, where they are in a bucket."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor

from tunewright.registry.caching import touch
from tunewright.registry.remote_files import RemoteFiles
from tunewright.registry.workspace import Workspace
from tunewright.store.records import Job

log = logging.getLogger("tunewright.scheduler")

_AGAIN_AFTER = 30.0
"""Seconds until a fetch that failed is tried again."""


class InputFiles:
    """Used from the scheduler's loop; `are_here` never blocks."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="inputs")
        self._fetches: dict[str, Future[None]] = {}
        self._not_before: dict[str, float] = {}
        self._missing: set[str] = set()

    def are_here(self, *ids: str) -> bool:
        """Whether all these files are on this machine. They are fetched where they are not; one that exists nowhere
        counts as being here, so that who opens it says that it is missing."""
        remote = self._workspace.remote_files
        if remote is None:
            return True
        found = [self._is_here(remote, id) for id in ids]  # all are asked for
        return all(found)

    def of(self, job: Job) -> bool:
        """Whether the files that a job reads are on this machine."""
        return self.are_here(*(one.file_id for one in job.inputs if one.file_id))

    def _is_here(self, remote: RemoteFiles, id: str) -> bool:
        if id in self._missing or touch(self._workspace.file(id)):
            return True
        fetch = self._fetches.get(id)
        if fetch is None:
            if time.monotonic() >= self._not_before.get(id, 0.0):
                self._fetches[id] = self._threads.submit(remote.fetch, id)
            return False
        if not fetch.done():
            return False
        del self._fetches[id]
        error = fetch.exception()
        if isinstance(error, FileNotFoundError):
            self._missing.add(id)
            return True
        if error is not None:
            log.warning("fetching %s: %s; trying again", id, error)
            self._not_before[id] = time.monotonic() + _AGAIN_AFTER
        return self._workspace.file(id).exists()


def fetch_inputs(workspace: Workspace, job: Job) -> None:
    """Bring the files that a job reads to this machine. What does not exist is passed over. Raises
    ArtifactsUnavailable and StorageFull."""
    for one in job.inputs:
        if one.file_id:
            workspace.fetch_file(one.file_id)
