"""The moment of a restore: what was unpacked takes the place of what is there, all of it or nothing.

A restore is asked for by one file, `run/restore.json`, written atomically when everything is checked, unpacked and on
disk. From then on it is made, whoever dies: by the running service between two lives of its processes, by the command
itself where no service runs, or at the next start. Whoever makes it holds the service's lock, and says that it has
begun by renaming that file; until then, who asked may take it back. Each step can be repeated, and tells by what is
there whether it was made.
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
from tunewright.supervisor.process import ProcessGroup

log = logging.getLogger("tunewright.backup")

_LOGS = tuple(f"{DATABASE}-{kind}" for kind in ("wal", "shm", "journal"))
"""What SQLite may leave beside the database; it belongs to the old one."""
_STAGING = re.compile(r"restore-[0-9A-Za-z-]+")
_REPLACED = re.compile(r"replaced-[0-9A-Za-z-]+")


@dataclass(frozen=True)
class Plan:
    """Two folders in the data folder: of what is to come, and for what it takes the place of."""

    staging: str
    replaced: str


def has_data(workspace: Workspace) -> bool:
    """Whether there is anything that a restore would replace."""
    return any(
        any(path.iterdir()) if path.is_dir() else path.exists()
        for path in (workspace.path / name for name in (DATABASE, *FOLDERS))
    )


def ask(workspace: Workspace, plan: Plan) -> None:
    """From here on the restore is made, unless it is taken back."""
    write_atomically(_asked(workspace), json.dumps(asdict(plan)))


def take_back(workspace: Workspace) -> bool:
    """Whether it had not begun, so that nothing was changed and nothing will be."""
    try:
        _asked(workspace).unlink()
    except FileNotFoundError:
        return False
    sync_folder(workspace.run)
    return True


def is_restore_pending(workspace: Workspace) -> bool:
    """Whether one was asked for and is not done."""
    return _asked(workspace).exists() or _begun(workspace).exists()


def finish_restore(workspace: Workspace) -> None:
    """Make the restore that is pending, if there is one. The caller holds the service's lock, and none of the service's
    processes is meant to live. Raises BackupError; then it stays pending."""
    if not is_restore_pending(workspace):
        return
    try:
        if _asked(workspace).exists():
            os.replace(_asked(workspace), _begun(workspace))
            sync_folder(workspace.run)
        plan = _read(_begun(workspace))
        _end_leftovers(workspace)
        _swap(workspace, plan)
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
    """Remove what restores that were killed while they unpacked left behind. The caller holds the archive's lock."""
    if not is_restore_pending(workspace):
        for path in workspace.path.iterdir():
            if _STAGING.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)


def _swap(workspace: Workspace, plan: Plan) -> None:
    """Move the old out and the new in, name by name. What still waits in the staging folder is not done."""
    staging, replaced = workspace.path / plan.staging, workspace.path / plan.replaced
    if (staging / DATABASE).exists():
        for name in _LOGS:
            _move(workspace.path / name, replaced / name)
    for name in (*FOLDERS, DATABASE):
        if (staging / name).exists():
            _move(workspace.path / name, replaced / name)
            os.replace(staging / name, workspace.path / name)
    if replaced.exists():
        sync_folder(replaced)
    sync_folder(workspace.path)


def _move(old: Path, kept: Path) -> None:
    """Out of the way, if it is there; an empty folder is not kept."""
    if old.is_dir() and not old.is_symlink() and not any(old.iterdir()):
        old.rmdir()
    elif os.path.lexists(old):
        if os.path.lexists(kept):
            raise FileExistsError(errno.EEXIST, "it was moved before, and made anew since", str(old))
        kept.parent.mkdir(mode=0o700, exist_ok=True)
        os.replace(old, kept)


def _end_leftovers(workspace: Workspace) -> None:
    """End processes of a service that was killed, or whose scheduler did not get to end them all."""
    below = [(folder, "*/process.json") for folder in (workspace.engines, workspace.jobs, workspace.tmp)]
    for folder, pattern in [(workspace.run, "*.json"), *below]:
        for record in folder.glob(pattern):
            group = ProcessGroup.adopt(record)
            if group is not None:
                group.end()


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
    return workspace.run / "restore.json"


def _begun(workspace: Workspace) -> Path:
    return workspace.run / "restore-begun.json"
