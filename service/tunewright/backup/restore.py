"""`tunewright restore`: checks an archive, unpacks it beside the current data, and replaces the data by it.

Nothing is changed before all of it was checked, unpacked and prepared; `swap.py` then replaces the data.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tunewright.kinds  # noqa: F401 (registers the kinds of jobs, whose rows are read here)
from tunewright import __version__
from tunewright.backup.archive import DATABASE, FOLDERS, Archive, Manifest, open_archive
from tunewright.backup.errors import BackupError
from tunewright.backup.locks import ServiceRecord, archive_lock, held, require_its_user, service_lock
from tunewright.backup.swap import (
    Plan,
    ask,
    clear_abandoned,
    finish_restore,
    has_data,
    is_restore_pending,
    other_database,
    take_back,
)
from tunewright.ids import utc_stamp
from tunewright.registry.workspace import Workspace
from tunewright.store.database import Database, known_revisions
from tunewright.store.service_lock import ServiceLock
from tunewright.store.sqlite_file import settle, sqlite_path
from tunewright.store.states import JobState
from tunewright.store.store import Store

OnProgress = Callable[[str, int, int], None]
"""Called with the current activity, the number of bytes that are done, and their total; 0 of 0 while waiting."""

_SERVICE_TIMEOUT = 120.0
"""Seconds in which a running service has to begin the restore: its processes have up to 14 to stop."""


@dataclass(frozen=True)
class Restored:
    """A restore that was made."""

    manifest: Manifest
    replaced: Path | None
    """The folder that keeps the earlier data; None where there was none."""
    running: bool
    """Whether a running service made the restore, and continues with the restored data."""


def restore_archive(
    workspace: Workspace, database_url: str, archive: Path, *, replace: bool, on_progress: OnProgress
) -> Restored:
    """Restore an archive into a data folder that has no data, or, with `replace`, in place of its data. A service may
    run on it.

    Raises BackupError, DatabaseUnusable and OSError; then nothing was changed, unless the message says so.
    """
    _require_its_own_database(workspace, database_url)
    require_its_user(workspace)
    if not replace:
        _refuse_data(workspace, database_url)
    with open_archive(archive) as opened:
        manifest = opened.manifest
        if manifest.revision not in known_revisions():
            raise BackupError(
                f"{archive} was made by a newer Tunewright ({manifest.version}; this is {__version__}): restore it "
                "with that version. Nothing was changed"
            )
        opened.verify(_counting(on_progress, "checking", manifest.bytes))
        with held(archive_lock(workspace)) as ours:
            if not ours:
                raise BackupError(
                    f"a backup or another restore is running in {workspace.path}: try again when it is done"
                )
            _complete_pending(
                workspace, database_url, on_progress
            )  # the request of a command that was killed
            clear_abandoned(workspace)
            plan = _unpack(workspace, database_url, opened, on_progress)
            try:
                running = _replace_data(workspace, database_url, plan, replace, on_progress)
            finally:
                if not is_restore_pending(workspace):
                    shutil.rmtree(workspace.path / plan.staging, ignore_errors=True)
    replaced = workspace.path / plan.replaced
    return Restored(manifest, replaced if replaced.exists() else None, running)


def _unpack(workspace: Workspace, url: str, archive: Archive, on_progress: OnProgress) -> Plan:
    plan = Plan(_unused(workspace, "restore"), _unused(workspace, "replaced"), other_database(url))
    staging = workspace.path / plan.staging
    size, room = archive.manifest.bytes, shutil.disk_usage(workspace.path).free
    if size > room:
        raise BackupError(
            f"there is no room in {workspace.path}: {size} bytes are needed and {room} are free"
        )
    staging.mkdir(mode=0o700)
    try:
        archive.unpack(staging, _counting(on_progress, "unpacking", size))
        on_progress("preparing the database", 0, 0)
        _prepare(staging / DATABASE)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return plan


def _unused(workspace: Workspace, kind: str) -> str:
    """An unused name with the current time, and with a number where the name of this second is taken."""
    stamp = f"{kind}-{utc_stamp()}"
    names = [stamp, *(f"{stamp}-{number}" for number in range(2, 1000))]
    return next(name for name in names if not (workspace.path / name).exists())


def _prepare(path: Path) -> None:
    """Upgrade the database to this version, and remove what was only true when and where the backup was made: which
    engines ran, and which jobs were running. These jobs are queued again, and continue from their checkpoints."""
    store = Store.open(f"sqlite:///{path}")
    try:
        store.database.upgrade()
        store.engines.forget()
        store.uploads.forget()
        store.bucket_owners.forget()
        for job in store.jobs.on_devices():
            if job.state is JobState.RUNNING:
                store.jobs.requeue(
                    job.id, "Restored from a backup; the job continues from its last checkpoint"
                )
            elif job.state is JobState.PAUSING:
                store.jobs.paused(job.id)
            else:
                store.jobs.release(job.id)
    finally:
        store.close()
    settle(path)


def _replace_data(workspace: Workspace, url: str, plan: Plan, replace: bool, on_progress: OnProgress) -> bool:
    """Replace the data by what was unpacked. Returns whether a running service did it."""
    _require_plain_folders(workspace)
    with held(service_lock(workspace)) as ours:
        if not replace:
            _refuse_data(workspace, url)
        if ours:
            with _database_held(workspace, url):
                try:
                    ask(workspace, plan)
                    finish_restore(workspace, url)
                except KeyboardInterrupt:
                    if not is_restore_pending(workspace):
                        raise
                    finish_restore(
                        workspace, url
                    )  # it is quick, and the next restore would have to do it first
            return False
    _require_same_version(workspace, url)
    try:
        ask(workspace, plan)
        return _complete_pending(workspace, url, on_progress)
    except KeyboardInterrupt:
        if not is_restore_pending(workspace):
            raise
        raise _withdrawn(workspace, "interrupted") from None


def _complete_pending(workspace: Workspace, url: str, on_progress: OnProgress) -> bool:
    """Wait until the running service has made the pending restore, or make it where no service runs.

    Returns whether the service made it.
    """
    deadline = time.monotonic() + _SERVICE_TIMEOUT
    while is_restore_pending(workspace):
        on_progress("waiting for the service to change over", 0, 0)
        with held(service_lock(workspace)) as ours:
            if ours:
                with _database_held(workspace, url):
                    finish_restore(workspace, url)
                return False
        if time.monotonic() > deadline:
            raise _withdrawn(
                workspace,
                f"the service did not begin the restore within {_SERVICE_TIMEOUT:.0f} s: stop it, and run this again",
            )
        time.sleep(0.1)
    return True


@contextmanager
def _database_held(workspace: Workspace, url: str) -> Iterator[None]:
    """Keep services with other data folders from the database. Raises DatabaseUnusable where one uses it."""
    lock = ServiceLock.take(url, workspace.path)
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


def _withdrawn(workspace: Workspace, why: str) -> BackupError:
    """Withdraw the request for a restore, if it has not begun. Returns the error to raise."""
    if take_back(workspace):
        return BackupError(f"{why}. Nothing was changed")
    return BackupError(
        f"{why}, and the restore into {workspace.path} has begun: the service completes it now, or when it starts"
    )


def _require_its_own_database(workspace: Workspace, url: str) -> None:
    """Raises BackupError for a SQLite database outside the data folder, and DatabaseUnusable for another one that
    cannot be reached or is not the service's."""
    path = sqlite_path(url)
    if path is None:
        database = Database(url)
        try:
            database.revision()
        finally:
            database.close()
        return
    if path.parent.resolve() / path.name != workspace.path / DATABASE:
        raise BackupError(
            f"a restore makes the database {workspace.path / DATABASE}, and --database-url or TUNEWRIGHT_DATABASE_URL "
            f"names {path}: restore without it into an empty data folder, and move the database there yourself"
        )


def _require_same_version(workspace: Workspace, url: str) -> None:
    record = ServiceRecord.read(workspace)
    if record is None or record.revision != known_revisions()[0]:
        raise BackupError(
            f"the service that runs on {workspace.path} is of another version than this command ({__version__}): stop "
            "it, or use the command of its version. Nothing was changed"
        )
    if record.database != (other_database(url) or str(workspace.path / DATABASE)):
        raise BackupError(
            f"the service that runs on {workspace.path} has its database elsewhere ({record.database}): stop it first. "
            "Nothing was changed"
        )


def _require_plain_folders(workspace: Workspace) -> None:
    """Raises BackupError where the data is behind a link or a mount, which cannot be renamed."""
    for name in (DATABASE, *FOLDERS):
        path = workspace.path / name
        if path.is_symlink() or path.is_mount():
            raise BackupError(
                f"{path} is a link or a mount of its own, and is not moved out of the way: restore into another data "
                "folder, and exchange the two yourself. Nothing was changed"
            )


def _refuse_data(workspace: Workspace, url: str) -> None:
    if has_data(workspace, url):
        also = other_database(url)
        where = f"{workspace.path} or {also}" if also else str(workspace.path)
        raise BackupError(
            f"{where} has data already: give another --data-dir, or --replace, which keeps that data in a folder "
            "beside it. Nothing was changed"
        )


def _counting(on_progress: OnProgress, what: str, total: int) -> Callable[[int], None]:
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        on_progress(what, done, total)

    return on_bytes
