"""The last step of a restore: what was unpacked replaces the data, completely or not at all.

A restore is requested by one file, `run/restore.json`, which is written atomically when everything was checked,
unpacked and synced to disk. From then on it is made even if processes are killed: by the running service after it has
stopped its processes, by the command itself where no service runs, or at the next start. The process that makes it
holds the service's lock, and renames that file when it begins; until then the request can be withdrawn. Each step can
be repeated, since the files themselves show whether it was made.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from tunewright.atomic import sync_folder, write_atomically
from tunewright.backup.archive import DATABASE, FOLDERS
from tunewright.backup.errors import BackupError
from tunewright.registry.workspace import Workspace
from tunewright.store.bucket_owners import carry_over
from tunewright.store.copies import has_rows, replace_rows, snapshot
from tunewright.store.database import Database
from tunewright.store.sqlite_file import settle, sqlite_path
from tunewright.supervisor.process import ProcessGroup

log = logging.getLogger("tunewright.backup")

_LOGS = tuple(f"{DATABASE}-{kind}" for kind in ("wal", "shm", "journal"))
"""Files that SQLite may leave beside a database, and that belong to the old one."""
_LOADED = "loaded.db"
"""The name of an archive's database, in the staging folder, once its rows are in a database that is not SQLite."""
_EARLIER = "earlier.db"
"""There, a copy of that database from before."""
_STAGING = re.compile(r"restore-[0-9A-Za-z-]+")
_REPLACED = re.compile(r"replaced-[0-9A-Za-z-]+")


@dataclass(frozen=True)
class Plan:
    """Two names of folders in the data folder: of the unpacked data, and for the data that it replaces."""

    staging: str
    replaced: str
    database: str | None = None
    """The database that gets the rows, in messages' form; None for SQLite in the data folder."""


def other_database(url: str) -> str | None:
    """The name of a database that is not SQLite, in messages' form; else None."""
    return str(Database(url)) if sqlite_path(url) is None else None


def has_data(workspace: Workspace, url: str) -> bool:
    """Whether the data folder, or its database, has anything that a restore would replace. Raises DatabaseUnusable."""
    is_other = other_database(url) is not None
    return any(
        any(path.iterdir()) if path.is_dir() else path.exists()
        for path in (workspace.path / name for name in ((*FOLDERS,) if is_other else (DATABASE, *FOLDERS)))
    ) or (is_other and has_rows(url))


def ask(workspace: Workspace, plan: Plan) -> None:
    """Request a restore: it will be made, unless the request is withdrawn."""
    write_atomically(_asked(workspace), json.dumps(asdict(plan)))


def take_back(workspace: Workspace) -> bool:
    """Withdraw the request for a restore. False where the restore has begun, or none was requested."""
    try:
        _asked(workspace).unlink()
    except FileNotFoundError:
        return False
    sync_folder(workspace.run)
    return True


def is_restore_pending(workspace: Workspace) -> bool:
    """Whether a restore was requested and is not complete."""
    return _asked(workspace).exists() or _begun(workspace).exists()


def finish_restore(workspace: Workspace, url: str) -> None:
    """Make the pending restore, if there is one. The caller holds the service's lock, and has stopped the service's
    processes. Raises BackupError, and DatabaseUnusable for a database that is not SQLite; then the restore stays
    pending."""
    if not is_restore_pending(workspace):
        return
    try:
        if _asked(workspace).exists():
            os.replace(_asked(workspace), _begun(workspace))
            sync_folder(workspace.run)
        plan = _read(_begun(workspace))
        _require_the_database(workspace, plan, url)
        _end_leftovers(workspace)
        _swap(workspace, plan, url)
        _begun(workspace).unlink()
        sync_folder(workspace.run)
        shutil.rmtree(workspace.path / plan.staging, ignore_errors=True)
    except OSError as error:
        raise BackupError(
            f"a restore into {workspace.path} has begun and could not be finished: {error}. Remove the cause and start "
            "the service, or run the restore again: it is finished first"
        ) from error
    log.info("a backup was restored into %s", workspace.path)


def clear_abandoned(workspace: Workspace) -> None:
    """Remove what restores left that were killed while unpacking. The caller holds the archive lock."""
    if not is_restore_pending(workspace):
        for path in workspace.path.iterdir():
            if _STAGING.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)


def _swap(workspace: Workspace, plan: Plan, url: str) -> None:
    """Move the old data out and the new data in, name by name. A name that is still in the staging folder was not
    replaced yet."""
    staging, replaced = workspace.path / plan.staging, workspace.path / plan.replaced
    if (staging / DATABASE).exists() and plan.database is None:
        if (workspace.path / DATABASE).is_file():
            carry_over(workspace.path / DATABASE, staging / DATABASE)
            settle(staging / DATABASE)
        for name in _LOGS:
            _move(workspace.path / name, replaced / name)
    for name in FOLDERS if plan.database else (*FOLDERS, DATABASE):
        if (staging / name).exists():
            _move(workspace.path / name, replaced / name)
            os.replace(staging / name, workspace.path / name)
    if plan.database:
        _replace_rows(staging, replaced, url)
    if replaced.exists():
        sync_folder(replaced)
    sync_folder(workspace.path)


def _replace_rows(staging: Path, replaced: Path, url: str) -> None:
    """Put the rows of the archive's database into one that is not SQLite, and keep those that were in it."""
    source, earlier = staging / DATABASE, staging / _EARLIER
    if source.exists():
        database = Database(url)
        try:
            database.upgrade()
            if not earlier.exists():
                unfinished = earlier.with_suffix(".tmp")
                unfinished.unlink(missing_ok=True)
                snapshot(url, unfinished)
                os.replace(unfinished, earlier)
            replace_rows(source, database)
        finally:
            database.close()
        os.replace(source, staging / _LOADED)
        sync_folder(staging)
    if earlier.exists() and has_rows(f"sqlite:///{earlier}"):
        replaced.mkdir(mode=0o700, exist_ok=True)
        os.replace(earlier, replaced / DATABASE)


def _move(old: Path, kept: Path) -> None:
    """Move `old` to `kept`, if it exists; an empty folder is removed instead."""
    if old.is_dir() and not old.is_symlink() and not any(old.iterdir()):
        old.rmdir()
    elif os.path.lexists(old):
        if os.path.lexists(kept):
            raise FileExistsError(errno.EEXIST, "it was moved before, and has been created again", str(old))
        kept.parent.mkdir(mode=0o700, exist_ok=True)
        os.replace(old, kept)


def _end_leftovers(workspace: Workspace) -> None:
    """End the processes that a killed service, or a scheduler that could not end all of them, has left."""
    below = [(folder, "*/process.json") for folder in (workspace.engines, workspace.jobs, workspace.tmp)]
    for folder, pattern in [(workspace.run, "*.json"), *below]:
        for record in folder.glob(pattern):
            group = ProcessGroup.adopt(record)
            if group is not None:
                group.end()


def _require_the_database(workspace: Workspace, plan: Plan, url: str) -> None:
    if plan.database != other_database(url):
        wanted = f"--database-url of {plan.database}" if plan.database else "no --database-url"
        raise BackupError(
            f"a restore into {workspace.path} has begun and is not finished: continue it with {wanted}"
        )


def _read(path: Path) -> Plan:
    try:
        plan = Plan(**json.loads(path.read_text()))
        if _STAGING.fullmatch(plan.staging) and _REPLACED.fullmatch(plan.replaced):
            return plan
        raise ValueError("it names other folders")
    except (ValueError, TypeError) as error:
        raise BackupError(
            f"{path} asks for a restore and cannot be read ({error}): remove it to keep the data as it is"
        ) from error


def _asked(workspace: Workspace) -> Path:
    """The file that requests a restore."""
    return workspace.run / "restore.json"


def _begun(workspace: Workspace) -> Path:
    """The name of that file when the restore has begun."""
    return workspace.run / "restore-begun.json"
