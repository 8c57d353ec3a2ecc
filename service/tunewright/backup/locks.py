"""Who may touch the data folder: the service's own lock, and the one of backups and restores."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from tunewright.atomic import write_atomically
from tunewright.backup.errors import BackupError
from tunewright.registry.workspace import Workspace

_BEING_MADE = 60.0
"""Seconds in which a new folder may not be locked yet."""


def hold(path: Path, *, shared: bool = False) -> int | None:
    """A lock that ends when its descriptor is closed, or its process ends; None where another holds it.

    Makes the data folder of the lock where it is not there, readable by its owner alone. Raises OSError.
    """
    path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def held(path: Path, *, shared: bool = False) -> Iterator[bool]:
    """The same for a block; whether it was had."""
    descriptor = hold(path, shared=shared)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder for the block, which goes with it. What killed processes left of such folders goes first."""
    for left in parent.glob(f"{prefix}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _BEING_MADE:
                with _locked_folder(left):
                    shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        with _locked_folder(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """Raises BlockingIOError where another process works in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def service_lock(workspace: Workspace) -> Path:
    """Held by the service for as long as it runs: whoever holds it may move what lies in the folder."""
    return workspace.run / "lock"


def require_its_user(workspace: Workspace) -> None:
    """What another user leaves in the folder, a lock say, the service could not open. Raises BackupError."""
    try:
        owner = service_lock(workspace).stat().st_uid
    except FileNotFoundError:  # no service was there yet
        return
    if owner != os.geteuid():
        raise BackupError(
            f"the service on {workspace.path} is user {owner}'s, and this is user {os.geteuid()}: run it as that user "
            f"(sudo -u '#{owner}' ...). Nothing was changed"
        )


def archive_lock(workspace: Workspace) -> Path:
    """Held by the command line: shared by backups, alone by a restore."""
    return workspace.run / "archive.lock"


@dataclass(frozen=True)
class ServiceRecord:
    """What the service that holds the lock is, for who would put other data under it."""

    revision: str
    """Of the database that it works with."""
    database: str
    """Its file, or a URL without the password."""

    def write(self, workspace: Workspace) -> None:
        write_atomically(workspace.run / "service.json", json.dumps(asdict(self)))

    @classmethod
    def read(cls, workspace: Workspace) -> Self | None:
        try:
            return cls(**json.loads((workspace.run / "service.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
