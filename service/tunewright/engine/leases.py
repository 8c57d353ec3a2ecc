"""Which adapters and deployments requests are using right now, told from process to process by the kernel.

The gateway (api process) holds a shared lock on an adapter's file for as long as one of its requests uses it; whoever
wants the engine to let go takes the exclusive one, and so knows that nobody does. A killed process gives its locks
back by dying. With the order below, an unload cannot race an admission:

    gateway: take the lease, then read that the adapter is loaded; give it back where it is not
    worker:  write that it is being drained, then wait for the last lease to go

A deployment's engine is drained in the same way, under the key `ENGINE`; there the scheduler is who waits.

The file's time of modification is when the adapter was last let go of, for LRU eviction.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from pathlib import Path

from tunewright.registry.workspace import file_name

ENGINE = "engine"
"""In an adapter's place: the engine itself."""
_LOOK_EVERY = 0.02


class Leases:
    """The gateway's side. Counts in memory, so that only the first and the last request of an adapter cost a lock.
    Not for threads: it lives in one event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[Path, tuple[int, int]] = {}

    def take(self, engine: str, sha256: str) -> bool:
        """One more request uses it; False where it is being unloaded just now."""
        path = _path(self._folder, engine, sha256)
        held = self._held.get(path)
        if held is not None:
            self._held[path] = (held[0], held[1] + 1)
            return True
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._held[path] = (descriptor, 1)
        return True

    def give_back(self, engine: str, sha256: str) -> None:
        """One request fewer uses it."""
        path = _path(self._folder, engine, sha256)
        descriptor, count = self._held[path]
        if count > 1:
            self._held[path] = (descriptor, count - 1)
            return
        del self._held[path]
        os.utime(descriptor)
        os.close(descriptor)

    def count(self, engine: str, sha256: str) -> int:
        """Requests that use it."""
        return self._held.get(_path(self._folder, engine, sha256), (0, 0))[1]


class Drain:
    """The side that waits."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def try_unused(self, engine: str, sha256: str) -> Unused | None:
        """Nobody uses it at this moment, and nobody can until `close` is called; None where somebody does."""
        descriptor = _open(_path(self._folder, engine, sha256))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return Unused(descriptor)

    async def wait_unused(self, engine: str, sha256: str, timeout: float) -> Unused | None:
        """Nobody uses it any more, and nobody can until `close` is called; None where somebody does after `timeout`
        seconds."""
        deadline = time.monotonic() + timeout
        while (unused := self.try_unused(engine, sha256)) is None and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_EVERY)
        return unused

    def last_used(self, engine: str, sha256: str) -> float:
        """Unix seconds; 0.0 for never."""
        try:
            return _path(self._folder, engine, sha256).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def touch(self, engine: str, sha256: str) -> None:
        """It counts as used now: it was just loaded for somebody."""
        _path(self._folder, engine, sha256).touch(mode=0o600)


class Unused:
    """An adapter that no request can use while this is open."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> Unused:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _path(folder: Path, engine: str, sha256: str) -> Path:
    return folder / f"{file_name(engine)}-{sha256}"
