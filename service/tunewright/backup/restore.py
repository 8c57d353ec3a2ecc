"""`tunewright restore`: checks an archive, unpacks it beside the data, and has it take the data's place.

Nothing is changed before all of it was checked, unpacked and prepared; how it then takes its place is `swap.py`'s.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
    take_back,
)
from tunewright.ids import utc_stamp
from tunewright.registry.workspace import Workspace
from tunewright.store.database import Database, known_revisions
from tunewright.store.sqlite_file import settle, sqlite_path
from tunewright.store.states import JobState
from tunewright.store.store import Store

Report = Callable[[str, int, int], None]
"""Told what is done now, and how many bytes of how many are; 0 of 0 where it is a wait."""

_PATIENCE = 120.0
"""Seconds in which a service begins: its processes are given up to 14 to stop."""


@dataclass(frozen=True)
class Restored:
    manifest: Manifest
    replaced: Path | None
    """Where what was there before is kept."""
    running: bool
    """Whether a service took it on, and goes on with it."""


def restore_archive(
    workspace: Workspace, database_url: str, archive: Path, *, replace: bool, report: Report
) -> Restored:
    """Put an archive into a data folder: one without data, or, with `replace`, in the place of what is there, also
    while a service runs on it.

    Raises BackupError, DatabaseUnusable and OSError; then nothing was changed, unless the message says so.
    """
    _require_its_own_database(workspace, database_url)
    require_its_user(workspace)
    if not replace:
        _refuse_data(workspace)
    with open_archive(archive) as opened:
        manifest = opened.manifest
        if manifest.revision not in known_revisions():
            raise BackupError(
                f"{archive} was made by a newer Tunewright ({manifest.version}; this is {__version__}): restore it "
                "with that version. Nothing was changed"
            )
        opened.verify(_counting(report, "checking", manifest.bytes))
        with held(archive_lock(workspace)) as ours:
            if not ours:
                raise BackupError(
                    f"a backup or another restore is at work in {workspace.path}: try again when it is done"
                )
            _see_it_done(workspace, report)  # one that was asked for by a command that was killed
            clear_abandoned(workspace)
            plan = _unpack(workspace, opened, report)
            try:
                running = _take_place(workspace, plan, replace, report)
            finally:
                if not is_restore_pending(workspace):
                    shutil.rmtree(workspace.path / plan.staging, ignore_errors=True)
    replaced = workspace.path / plan.replaced
    return Restored(manifest, replaced if replaced.exists() else None, running)


def _unpack(workspace: Workspace, archive: Archive, report: Report) -> Plan:
    plan = Plan(_unused(workspace, "restore"), _unused(workspace, "replaced"))
    staging = workspace.path / plan.staging
    size, room = archive.manifest.bytes, shutil.disk_usage(workspace.path).free
    if size > room:
        raise BackupError(
            f"there is no room in {workspace.path}: {size} bytes are needed and {room} are free"
        )
    staging.mkdir(mode=0o700)
    try:
        archive.unpack(staging, _counting(report, "unpacking", size))
        report("preparing the database", 0, 0)
        _prepare(staging / DATABASE)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return plan


def _unused(workspace: Workspace, kind: str) -> str:
    """A name that says when; two in one second are told apart by a number."""
    stamp = f"{kind}-{utc_stamp()}"
    names = [stamp, *(f"{stamp}-{number}" for number in range(2, 1000))]
    return next(name for name in names if not (workspace.path / name).exists())


def _prepare(path: Path) -> None:
    """Bring the database to this version, and forget what was only so where and when the backup was made: which
    engines ran, and which jobs were in training. Those wait for a device again, and go on from their checkpoints."""
    store = Store.open(f"sqlite:///{path}")
    try:
        store.database.upgrade()
        store.engines.forget()
        for job in store.jobs.on_devices():
            if job.state is JobState.RUNNING:
                store.jobs.requeue(job.id, "Restored from a backup; the job goes on from its last checkpoint")
            elif job.state is JobState.PAUSING:
                store.jobs.paused(job.id)
            else:
                store.jobs.release(job.id)
    finally:
        store.close()
    settle(path)


def _take_place(workspace: Workspace, plan: Plan, replace: bool, report: Report) -> bool:
    """Whether a service took it on."""
    _require_plain_folders(workspace)
    with held(service_lock(workspace)) as ours:
        if not replace:
            _refuse_data(workspace)
        if ours:
            try:
                ask(workspace, plan)
                finish_restore(workspace)
            except KeyboardInterrupt:
                if not is_restore_pending(workspace):
                    raise
                finish_restore(workspace)  # quickly done, and the next restore would have to do it first
            return False
    _require_same_version(workspace)
    try:
        ask(workspace, plan)
        return _see_it_done(workspace, report)
    except KeyboardInterrupt:
        if not is_restore_pending(workspace):
            raise
        raise _given_up(workspace, "interrupted") from None


def _see_it_done(workspace: Workspace, report: Report) -> bool:
    """Wait until the service has made the restore that is pending, or make it where there is none (any more).

    Whether the service made it.
    """
    deadline = time.monotonic() + _PATIENCE
    while is_restore_pending(workspace):
        report("waiting for the service to change over", 0, 0)
        with held(service_lock(workspace)) as ours:
            if ours:
                finish_restore(workspace)
                return False
        if time.monotonic() > deadline:
            raise _given_up(
                workspace,
                f"the service did not take it on within {_PATIENCE:.0f} s: stop it, and run this again",
            )
        time.sleep(0.1)
    return True


def _given_up(workspace: Workspace, why: str) -> BackupError:
    if take_back(workspace):
        return BackupError(f"{why}. Nothing was changed")
    return BackupError(
        f"{why}, and the restore into {workspace.path} has begun: the service goes on with it, or finishes it "
        "when it starts"
    )


def _require_its_own_database(workspace: Workspace, url: str) -> None:
    path = sqlite_path(url)
    if path is None:
        raise BackupError(
            f"the database {Database(url)} is not SQLite: restore it with its own means (pg_restore), and put the "
            f"folders files, jobs and artifacts into {workspace.path}. See docs/how-to/back-up-and-restore.md"
        )
    if path.parent.resolve() / path.name != workspace.path / DATABASE:
        raise BackupError(
            f"a restore makes the database {workspace.path / DATABASE}, and --database-url or TUNEWRIGHT_DATABASE_URL "
            f"names {path}: restore without it into an empty data folder, and move the database there yourself"
        )


def _require_same_version(workspace: Workspace) -> None:
    record = ServiceRecord.read(workspace)
    if record is None or record.revision != known_revisions()[0]:
        raise BackupError(
            f"the service that runs on {workspace.path} is of another version than this command ({__version__}): stop "
            "it, or use the command of its version. Nothing was changed"
        )
    if record.database != str(workspace.path / DATABASE):
        raise BackupError(
            f"the service that runs on {workspace.path} has its database elsewhere ({record.database}): stop it first. "
            "Nothing was changed"
        )


def _require_plain_folders(workspace: Workspace) -> None:
    """What is renamed can neither be a mount nor lie elsewhere."""
    for name in (DATABASE, *FOLDERS):
        path = workspace.path / name
        if path.is_symlink() or path.is_mount():
            raise BackupError(
                f"{path} is a link or a mount of its own, and is not moved out of the way: restore into another data "
                "folder, and exchange the two yourself. Nothing was changed"
            )


def _refuse_data(workspace: Workspace) -> None:
    if has_data(workspace):
        raise BackupError(
            f"{workspace.path} has data already: give another --data-dir, or --replace, which keeps what is there in a "
            "folder beside it. Nothing was changed"
        )


def _counting(report: Report, what: str, total: int) -> Callable[[int], None]:
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        report(what, done, total)

    return on_bytes
