"""Removal of files and folders on the local disk, safe beside processes that publish the same name at that moment."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_REMOVED = "removed-"


class Removals:
    """Locks in `run`, by name; what is being removed is moved to `tmp` first, which is on the same file system."""

    def __init__(self, run: Path, tmp: Path) -> None:
        self._run = run
        self._tmp = tmp

    @contextmanager
    def keeping(self, name: str) -> Iterator[None]:
        """No process removes a path of this name meanwhile. Many may hold the same; waits while it is being removed."""
        with self._locked(name, fcntl.LOCK_SH):
            yield

    def remove(self, path: Path, is_used: Callable[[], object]) -> bool:
        """Remove it unless `is_used()`, which is asked under the lock; whether it was removed.

        First it is moved out of sight, then deleted: no reader finds a part of it.
        """
        with self._locked(path.name, fcntl.LOCK_EX):
            if not path.exists() or is_used():
                return False
            doomed = self._tmp / f"{_REMOVED}{path.name}-{secrets.token_hex(4)}"
            os.replace(path, doomed)
        destroy(doomed)
        return True

    def finish(self) -> None:
        """Delete what a crash left moved out of sight."""
        for doomed in self._tmp.glob(f"{_REMOVED}*"):
            destroy(doomed)

    @contextmanager
    def _locked(self, name: str, how: int) -> Iterator[None]:
        """A lock between processes, which ends with its holder. A few names share each file: one that published for
        long would otherwise hold up all removals, and a file for each name would have to be removed itself."""
        path = self._run / f"keep-{zlib.crc32(name.encode()) % 64}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, how)
            try:
                yield
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # also where a child inherited it
        finally:
            os.close(descriptor)


def destroy(path: Path) -> None:
    """Delete a file or a folder as far as that is possible. Raises OSError for a file that cannot be deleted."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
