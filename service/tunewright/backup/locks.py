"""The locks of the data folder: the service's own, and the one of backups and restores."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from tunewright.atomic import write_atomically
from tunewright.backup.errors import BackupError
from tunewright.registry.workspace import Workspace


def hold(path: Path, *, shared: bool = False) -> int | None:
    """Take a lock, which ends when the returned descriptor is closed or the process ends. None where another process
    holds it.

    Creates the data folder of the lock where it does not exist, readable only by its owner. Raises OSError.
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
    """Hold a lock for a block, which gets whether the lock was taken."""
    descriptor = hold(path, shared=shared)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def service_lock(workspace: Workspace) -> Path:
    """The lock that the service holds for as long as it runs. Its holder may move the contents of the data folder."""
    return workspace.run / "lock"


def require_its_user(workspace: Workspace) -> None:
    """Raises BackupError where the service runs as another user: it could not open the files that this process
    makes."""
    try:
        owner = service_lock(workspace).stat().st_uid
    except FileNotFoundError:  # no service has used the folder yet
        return
    if owner != os.geteuid():
        raise BackupError(
            f"the service on {workspace.path} is user {owner}'s, and this is user {os.geteuid()}: run this as that "
            f"user (sudo -u '#{owner}' ...). Nothing was changed"
        )


def archive_lock(workspace: Workspace) -> Path:
    """The lock of the command line: backups share it, a restore holds it exclusively."""
    return workspace.run / "archive.lock"


@dataclass(frozen=True)
class ServiceRecord:
    """The version and database of the running service, for the command that restores into its data folder."""

    revision: str
    """The revision of its database."""
    database: str
    """The file of its database, or its URL without the password."""

    def write(self, workspace: Workspace) -> None:
        write_atomically(workspace.run / "service.json", json.dumps(asdict(self)))

    @classmethod
    def read(cls, workspace: Workspace) -> Self | None:
        try:
            return cls(**json.loads((workspace.run / "service.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
