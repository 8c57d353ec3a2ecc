"""Keeps the data folder within its limits: removes old files, checkpoints, artifacts that nothing points at, and the
folders of jobs that are over. Never what is in use.

A row goes first, in the transaction that finds it unneeded; then its bytes, out of sight before they are gone. Killed
at any time, this leaves bytes that nothing points at, which a later round removes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tunewright.config import RetentionOptions
from tunewright.errors import InvalidRequest
from tunewright.jobs.kinds import registered_kinds
from tunewright.registry.content import folder_size
from tunewright.registry.workspace import Workspace
from tunewright.store.records import TunedModel
from tunewright.store.store import Store

log = logging.getLogger("tunewright.retention")

_EVERY = 600.0
_DAY = 86_400.0
_NEW = 3600.0
"""Seconds in which limits of size leave a thing alone (an upload waits for its job), and in which bytes without a row
are not yet taken for a crash's."""


@dataclass(frozen=True)
class _Thing:
    """What may go: nobody needed it when it was looked up."""

    name: str
    bytes: int
    """Freed with it: none where something else has the same artifact."""
    since: float
    remove: Callable[[], bool]
    """False where somebody needs it by now."""


class Retention:
    """A part of the scheduler. `tick()` never blocks: a round runs in a thread, at the start and every ten minutes."""

    def __init__(
        self,
        options: RetentionOptions,
        store: Store,
        workspace: Workspace,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._options = options
        self._store = store
        self._workspace = workspace
        self._clock = clock
        self._due = time.monotonic()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._told: set[str] = set()

    def tick(self) -> None:
        running = self._thread is not None and self._thread.is_alive()
        if running or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _EVERY
        self._thread = threading.Thread(target=self.round, name="retention", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends after the thing that is being removed; a large one is left half-gone, for the next start."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(0.5)

    def round(self) -> None:
        """Look at everything once."""
        for part in (
            self._workspace.finish_removals, self._files, self._checkpoints, self._unused_artifacts,
            self._unlisted_files, self._job_folders,
        ):  # fmt: skip
            if self._stopping.is_set():
                return
            try:
                part()
            except Exception:  # the other parts may still make room
                log.exception(
                    "%s failed; trying again in %.0f minutes", part.__name__.strip("_"), _EVERY / 60
                )

    # what there is

    def _files(self) -> None:
        found = self._store.files.last_used()
        things = [
            _Thing(
                f"file {file.id} ({file.filename})", file.bytes, since, partial(self._remove_file, file.id)
            )
            for file, since in found
            if since is not None
        ]
        self._prune(
            "files",
            things,
            total=sum(file.bytes for file, _ in found),
            days=self._options.keep_files_days,
            size=self._options.max_files_size,
        )

    def _checkpoints(self) -> None:
        idle = self._store.models.idle_checkpoints()
        listed = self._store.models.list()[0]
        products = {model.sha256 for model in listed if model.checkpoint_step is None}
        sizes = {model.sha256: model.bytes for model in listed if model.sha256 not in products}
        ids = {model.id for model in idle}
        needed = {model.sha256 for model in listed if model.id not in ids}
        things = [
            _Thing(
                f"checkpoint {model.name}",
                0 if model.sha256 in needed else model.bytes,
                max(model.created_at, model.last_used_at or 0.0),
                partial(self._remove_checkpoint, model),
            )
            for model in idle
        ]
        self._prune(
            "checkpoints",
            things,
            total=sum(sizes.values()),
            days=self._options.keep_checkpoints_days,
            size=self._options.max_checkpoints_size,
        )

    def _unused_artifacts(self) -> None:
        hashes = self._workspace.artifacts.hashes()  # before the rows, as in `_names`
        if not self._is_our_database():
            return
        things = []
        for sha256 in hashes - self._store.models.weights_in_use():
            with suppress(FileNotFoundError):  # its model was deleted, and it with it, a moment ago
                stored = self._workspace.artifacts.stat(sha256)
                things.append(
                    _Thing(
                        f"artifact {sha256}, which nothing points at",
                        stored.bytes,
                        stored.since,
                        partial(self._remove_artifact, sha256),
                    )
                )
        self._prune(
            "unused-artifacts",
            things,
            total=sum(thing.bytes for thing in things),
            days=self._options.keep_unused_artifacts_days,
            size=self._options.max_unused_artifacts_size,
        )

    def _unlisted_files(self) -> None:
        """A crash came between a file's bytes and its row, one way or the other."""
        names = _names(self._workspace.files, "file-*")
        if not self._is_our_database():
            return
        for id in names - {file.id for file, _ in self._store.files.last_used()}:
            with suppress(FileNotFoundError):  # it was deleted a moment ago
                status = self._workspace.file(id).stat()
                age = self._clock() - status.st_mtime
                if age > _NEW and self._workspace.remove_file(id, partial(self._store.files.get, id)):
                    _note(f"file {id}", status.st_size, age, "it is not listed")

    def _job_folders(self) -> None:
        if self._options.keep_job_folders_days is None:
            return
        ended_at = self._store.jobs.ended_at()
        things = [
            _Thing(
                f"folder of job {id}",
                folder_size(self._workspace.job(id)),
                since,
                partial(self._workspace.remove_job, id),
            )
            for id in self._job_folder_names()
            if (since := ended_at.get(id)) is not None
        ]
        self._prune("job-folders", things, total=0, days=self._options.keep_job_folders_days, size=None)

    def _job_folder_names(self) -> set[str]:
        """The folders of jobs of every kind."""
        return set().union(
            *(_names(self._workspace.jobs, f"{kind.id_prefix}-*") for kind in registered_kinds())
        )

    def _is_our_database(self) -> bool:
        """Whether what it does not point at is of no use. Rows of jobs are not deleted, so a job folder without one
        is another database's, or is newer than a copy that was put back: then it is somebody's work."""
        folders = self._job_folder_names()
        jobs = self._store.jobs.ended_at().keys()
        strangers = sorted(folders - jobs)
        empty = not (jobs or self._store.files.last_used() or self._store.models.list(limit=1)[0])
        if not strangers and not empty:
            self._told.discard("database")
            return True
        if strangers:
            self._tell(
                "database",
                f"{len(strangers)} folders in {self._workspace.jobs} are of no job in the database ({strangers[0]}, "
                "say): it is another database, or an older copy. Until they are moved away, no file and no artifact is "
                "removed for being unknown to it.",
            )
        return False

    # how it goes

    def _prune(
        self, kind: str, things: Sequence[_Thing], *, total: int, days: float | None, size: int | None
    ) -> None:
        """Remove what is too old, then the oldest until `total` bytes are within `size`."""
        if days is None and size is None:
            return
        for thing in sorted(things, key=lambda thing: thing.since):
            if self._stopping.is_set():
                return
            age = self._clock() - thing.since
            if days is not None and age > days * _DAY:
                why = f"--keep-{kind}-days {days:g}"
            elif size is not None and total > size and thing.bytes and age > _NEW:
                why = f"--max-{kind}-size {_size(size)}"
            else:
                continue
            if thing.remove():
                total -= thing.bytes
                log.info(
                    "removed %s (%s, %.1f days old): %s", thing.name, _size(thing.bytes), age / _DAY, why
                )
        if size is not None and total > size:
            self._tell(
                kind,
                f"{_size(total)} are over --max-{kind}-size {_size(size)}: what is left is in use, or newer than an "
                "hour.",
            )
        else:
            self._told.discard(kind)

    def _remove_file(self, id: str) -> bool:
        try:
            if not self._store.files.delete(id):
                return False
        except InvalidRequest:  # a job came that needs it
            return False
        self._workspace.remove_file(id, lambda: self._store.files.get(id))
        return True

    def _remove_checkpoint(self, model: TunedModel) -> bool:
        if not self._store.models.delete_idle_checkpoint(model.id):
            return False
        self._remove_artifact(model.sha256)
        return True

    def _remove_artifact(self, sha256: str) -> bool:
        return self._workspace.artifacts.remove(sha256, lambda: self._store.models.weights_in_use(sha256))

    def _tell(self, about: str, warning: str) -> None:
        """Once, until it is no longer so."""
        if about not in self._told:
            self._told.add(about)
            log.warning("%s", warning)


def _names(folder: Path, like: str) -> set[str]:
    """Of what lies there now, read before the rows: what is listed later was no leftover. The rest is not ours."""
    return {path.name for path in folder.glob(like)}


def _note(name: str, bytes: int, age: float, why: str) -> None:
    log.info("removed %s (%s, %.1f days old): %s", name, _size(bytes), age / _DAY, why)


def _size(bytes: int) -> str:
    """For people, in the units of the settings."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if bytes >= factor:
            return f"{bytes / factor:.1f} {unit}"
    return f"{bytes} B"
