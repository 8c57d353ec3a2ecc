"""Keeps the workspace within its limits: removes old files, checkpoints, unreferenced artifacts, jobs that have ended
with their folders and events, and leases of what is gone. Nothing in use is removed.

A row is deleted first, in the transaction that finds it unneeded. Then its bytes are renamed and deleted. If the
process is killed meanwhile, unreferenced bytes are left, which a later round removes.
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
from tunewright.engine.leases import prune
from tunewright.errors import ArtifactsUnavailable, InvalidRequest
from tunewright.jobs.kinds import registered_kinds
from tunewright.registry.content import folder_size
from tunewright.registry.workspace import Workspace
from tunewright.store.records import FileRecord, TunedModel
from tunewright.store.store import Store

log = logging.getLogger("tunewright.retention")

_EVERY = 600.0
"""Seconds between two rounds."""
_DAY = 86_400.0
_NEW = 3600.0
"""Seconds in which something new is not removed for its size (an upload waits for its job), and in which bytes without
a row are not yet taken for what a crash left."""


@dataclass(frozen=True)
class _Removable:
    """Something that may be removed: it was not needed when it was looked up."""

    name: str
    bytes: int
    """Bytes that its removal frees: 0 where another model has the same artifact."""
    since: float
    """Unix seconds from which its age counts."""
    remove: Callable[[], bool]
    """Returns False where it is needed by now."""


class Retention:
    """Removes what is over the limits, as a part of the scheduler. `tick()` never blocks: a round runs in a thread, at
    the start and every ten minutes."""

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
        self._warned: set[str] = set()

    def tick(self) -> None:
        running = self._thread is not None and self._thread.is_alive()
        if running or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _EVERY
        self._thread = threading.Thread(target=self.round, name="retention", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop after the current removal. A large one may be left incomplete, and is finished at the next start."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(0.5)

    def round(self) -> None:
        """Apply all limits once."""
        for part in (
            self._workspace.finish_removals, self._files, self._checkpoints, self._unused_artifacts,
            self._unlisted_files, self._uploads, self._token_cache, self._job_folders, self._events, self._jobs,
            self._leases, self._deliveries, self._audit,
        ):  # fmt: skip
            if self._stopping.is_set():
                return
            try:
                part()
            except ArtifactsUnavailable as error:
                log.warning("%s: %s", part.__name__.strip("_"), error)
            except Exception:  # the other parts may still make room
                log.exception(
                    "%s failed; trying again in %.0f minutes", part.__name__.strip("_"), _EVERY / 60
                )

    # candidates

    def _files(self) -> None:
        found = [
            (file, since)
            for file, since in self._store.files.last_used()
            if since is None or not self._has_expired(file)
        ]
        things = [
            _Removable(
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

    def _has_expired(self, file: FileRecord) -> bool:
        """Whether the file was to expire by now, and is removed."""
        now = self._clock()
        if file.expires_at is None or now < file.expires_at or not self._remove_file(file.id):
            return False
        _log_removal(f"file {file.id} ({file.filename})", file.bytes, now - file.created_at, "it has expired")
        return True

    def _checkpoints(self) -> None:
        idle = self._store.models.idle_checkpoints()
        listed = self._store.models.list()[0]
        products = {model.sha256 for model in listed if model.checkpoint_step is None}
        sizes = {model.sha256: model.bytes for model in listed if model.sha256 not in products}
        ids = {model.id for model in idle}
        needed = {model.sha256 for model in listed if model.id not in ids}
        things = [
            _Removable(
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
            with suppress(FileNotFoundError):  # deleted with its model a moment ago
                stored = self._workspace.artifacts.stat(sha256)
                things.append(
                    _Removable(
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
        """Remove files without a row, which a crash between writing their bytes and their row left."""
        names = _names(self._workspace.files, "file-*")
        if not self._is_our_database():
            return
        for id in names - {file.id for file, _ in self._store.files.last_used()}:
            with suppress(FileNotFoundError):  # it was deleted a moment ago
                status = self._workspace.file(id).stat()
                age = self._clock() - status.st_mtime
                if age > _NEW and self._workspace.remove_file(id, partial(self._store.files.get, id)):
                    _log_removal(f"file {id}", status.st_size, age, "it is not listed")
        if self._workspace.remote_files is None:
            return
        stored = self._workspace.remote_files.stored()  # before the rows, as in `_names`
        for id in stored.keys() - self._store.files.ids():
            age = self._clock() - stored[id]
            if age > _DAY and self._workspace.remove_file(id, partial(self._store.files.get, id)):
                _log_removal(f"file {id}", 0, age, "it is not listed")

    def _uploads(self) -> None:
        """Remove the parts of uploads that have ended or expired, and a day later their rows."""
        names = _names(self._workspace.uploads, "upload-*")
        for id in names - self._store.uploads.pending():
            if self._workspace.remove_upload(id):
                log.info("removed the parts of upload %s, which has ended or expired", id)
        self._store.uploads.delete_ended(self._clock() - _DAY)

    def _token_cache(self) -> None:
        """Remove the tokens of files that are no longer listed, then those used longest ago. A process that reads
        tokens has locked them; what a killed process has left unfinished is locked by none."""
        cache = self._workspace.token_cache
        cache.remove_unfinished()
        entries = cache.entries()  # before the rows, as in `_names`
        listed = {file.sha256 for file, _ in self._store.files.last_used()}
        kept = []
        for entry in entries:
            if entry.source in listed or not cache.remove(entry.key):
                kept.append(entry)
            else:
                age = self._clock() - entry.used_at
                _log_removal(f"token cache {entry.key}", entry.bytes, age, "its file is not listed")
        things = [
            _Removable(f"token cache {e.key}", e.bytes, e.used_at, partial(cache.remove, e.key)) for e in kept
        ]
        self._prune(
            "token-cache",
            things,
            total=sum(entry.bytes for entry in kept),
            days=None,
            size=self._options.max_token_cache_size,
        )

    def _job_folders(self) -> None:
        if self._options.keep_job_folders_days is None:
            return
        ended_at = self._store.jobs.ended_at()
        things = [
            _Removable(
                f"folder of job {id}",
                folder_size(self._workspace.job(id)),
                since,
                partial(self._workspace.remove_job, id),
            )
            for id in self._job_folder_names()
            if (since := ended_at.get(id)) is not None
        ]
        self._prune("job-folders", things, total=0, days=self._options.keep_job_folders_days, size=None)

    def _events(self) -> None:
        days = self._options.keep_events_days
        if days is not None:
            removed = self._store.jobs.delete_events(self._clock() - days * _DAY)
            if removed:
                log.info("removed %d events of ended jobs: --keep-events-days %g", removed, days)

    def _jobs(self) -> None:
        if self._options.keep_jobs_days is None:
            return
        things = [
            _Removable(f"job {id}", 0, since, partial(self._remove_job, id))
            for id, since in self._store.jobs.without_products().items()
        ]
        self._prune("jobs", things, total=0, days=self._options.keep_jobs_days, size=None)

    def _leases(self) -> None:
        """Remove the locks of adapters and engines that are gone, an hour after their last use."""
        names = {engine.name for engine in self._store.engines.list()}
        prune(self._workspace.leases, names, self._store.models.weights_in_use(), self._clock() - _NEW)

    def _audit(self) -> None:
        days = self._options.keep_audit_days
        if days is not None and (gone := self._store.audit.prune(self._clock() - days * _DAY)):
            log.info("deleted %d rows of the audit log that were older than %g days", gone, days)

    def _deliveries(self) -> None:
        days = self._options.keep_deliveries_days
        removed = self._store.webhooks.prune(self._clock() - days * _DAY)
        if removed:
            log.info("removed %d deliveries of webhooks: --keep-deliveries-days %g", removed, days)

    def _job_folder_names(self) -> set[str]:
        """The folders of jobs of every kind."""
        return set().union(
            *(_names(self._workspace.jobs, f"{kind.id_prefix}-*") for kind in registered_kinds())
        )

    def _is_our_database(self) -> bool:
        """Whether data that the database does not refer to may be removed.

        A job's row is deleted after its folder, so a folder without one belongs to another database or is newer than a
        restored copy of this one: then the data may still be needed.
        """
        folders = self._job_folder_names()
        jobs = self._store.jobs.ended_at().keys()
        strangers = sorted(folders - jobs)
        empty = not (jobs or self._store.files.last_used() or self._store.models.list(limit=1)[0])
        if not strangers and not empty:
            self._warned.discard("database")
            return True
        if strangers:
            self._warn_once(
                "database",
                f"{len(strangers)} folders in {self._workspace.jobs} are of no job in the database ({strangers[0]}, "
                "say): it is another database, or an older copy. Until they are moved away, no file and no artifact is "
                "removed for being unknown to it.",
            )
        return False

    # removal

    def _prune(
        self, kind: str, things: Sequence[_Removable], *, total: int, days: float | None, size: int | None
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
            self._warn_once(
                kind,
                f"{_size(total)} are over --max-{kind}-size {_size(size)}: what is left is in use, or newer than an "
                "hour.",
            )
        else:
            self._warned.discard(kind)

    def _remove_file(self, id: str) -> bool:
        try:
            if not self._store.files.delete(id):
                return False
        except InvalidRequest:  # a new job needs it
            return False
        self._workspace.remove_file(id, lambda: self._store.files.get(id))
        return True

    def _remove_job(self, id: str) -> bool:
        self._workspace.remove_job(id)
        return self._store.jobs.delete(id)

    def _remove_checkpoint(self, model: TunedModel) -> bool:
        if not self._store.models.delete_idle_checkpoint(model.id):
            return False
        self._remove_artifact(model.sha256)
        return True

    def _remove_artifact(self, sha256: str) -> bool:
        return self._workspace.artifacts.remove(sha256, lambda: self._store.models.weights_in_use(sha256))

    def _warn_once(self, about: str, warning: str) -> None:
        """Log a warning once, until its reason is gone."""
        if about not in self._warned:
            self._warned.add(about)
            log.warning("%s", warning)


def _names(folder: Path, pattern: str) -> set[str]:
    """Names in the folder. Read them before the rows, so that what gets a row in between does not count as a leftover.
    Other names than those of the pattern are not the service's."""
    return {path.name for path in folder.glob(pattern)}


def _log_removal(name: str, bytes: int, age: float, why: str) -> None:
    log.info("removed %s (%s, %.1f days old): %s", name, _size(bytes), age / _DAY, why)


def _size(bytes: int) -> str:
    """A readable size, in the units of the settings."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if bytes >= factor:
            return f"{bytes / factor:.1f} {unit}"
    return f"{bytes} B"
