"""Removes files and folders on the local disk, safely beside processes that publish the same name concurrently."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_REMOVED = "removed-"


class Removals:
    """Removals under locks in `run`, by name. Files are first moved to `tmp`, which is on the same file system."""

    def __init__(self, run: Path, tmp: Path) -> None:
        self._run = run
        self._tmp = tmp

    @contextmanager
    def keeping(self, name: str) -> Iterator[None]:
        """Keep all processes from removing a path of this name. Waits while it is being removed.

        It may be held several times.
        """
        with self._locked(name, fcntl.LOCK_SH):
            yield

    @contextmanager
    def alone(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Keep a path of this name to the block, which may remove it: nothing holds it by `keeping` then. The block
        gets False where it is held and this does not `wait`."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self._locked(name, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)))
                is_ours = True
            except BlockingIOError:
                is_ours = False
            yield is_ours

    def remove(self, path: Path, is_used: Callable[[], object]) -> bool:
        """Remove it unless `is_used()`, which is called under the lock. Returns whether it was removed.

        It is first moved away, then deleted, so that no reader finds a part of it.
        """
        with self.alone(path.name):
            if not path.exists() or is_used():
                return False
            doomed = self.move_away(path)
        destroy(doomed)
        return True

    def move_away(self, path: Path) -> Path:
        """Rename what is to be deleted, so that no reader finds a part of it. Returns its new place, for `destroy`."""
        doomed = self._tmp / f"{_REMOVED}{path.name}-{secrets.token_hex(4)}"
        os.replace(path, doomed)
        return doomed

    def finish(self) -> None:
        """Delete what was moved away before a crash."""
        for doomed in self._tmp.glob(f"{_REMOVED}*"):
            destroy(doomed)

    @contextmanager
    def _locked(self, name: str, how: int) -> Iterator[None]:
        """Hold a lock between processes, which ends with its holder.

        Names are distributed over 64 files. With a single file, a long publication would delay all removals; files for
        each name would have to be removed themselves.
        """
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
