"""Leases on the adapters and deployments that requests are using, as file locks shared by all processes.

The gateway (in the api process) holds a shared lock on an adapter's file for as long as one of its requests uses the
adapter. The process that unloads the adapter takes the exclusive lock, and so knows that no request uses it. The kernel
releases the locks of a killed process. With the order below, an unload cannot race with the admission of a request:

    gateway: take the lease, then read that the adapter is loaded; give the lease back where it is not
    worker:  write that the adapter is being drained, then wait until the last lease was given back

A deployment's engine is drained in the same way, under the key `ENGINE`; there the scheduler waits.

The file's time of modification is the end of the adapter's last use, for LRU eviction.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from tunewright.registry.workspace import file_name

ENGINE = "engine"
"""The key of the engine itself, in place of an adapter's hash."""
_POLL_SECONDS = 0.02


class Leases:
    """The leases of the gateway. It counts requests in memory, so that only the first and the last request of an
    adapter touch the lock. Not thread-safe: use it in one event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[tuple[str, str], tuple[int, int]] = {}
        """The descriptor of the locked file, and the number of requests, by engine and hash."""

    def take(self, engine: str, sha256: str) -> bool:
        """Take a lease for one more request; False where the adapter is being unloaded."""
        key = (engine, sha256)
        held = self._held.get(key)
        if held is not None:
            self._held[key] = (held[0], held[1] + 1)
            return True
        descriptor = _lock(_path(self._folder, engine, sha256), fcntl.LOCK_SH)
        if descriptor is None:
            return False
        self._held[key] = (descriptor, 1)
        return True

    def give_back(self, engine: str, sha256: str) -> None:
        """Give back the lease of one request."""
        key = (engine, sha256)
        descriptor, count = self._held[key]
        if count > 1:
            self._held[key] = (descriptor, count - 1)
            return
        del self._held[key]
        os.utime(descriptor)
        os.close(descriptor)

    def count(self, engine: str, sha256: str) -> int:
        """Number of requests that use the adapter."""
        return self._held.get((engine, sha256), (0, 0))[1]


class Drain:
    """Waits for leases to be given back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def try_unused(self, engine: str, sha256: str) -> Unused | None:
        """Lock an adapter that no request uses, so that none can use it until `close` is called; None where a request
        does."""
        descriptor = _lock(_path(self._folder, engine, sha256), fcntl.LOCK_EX)
        return Unused(descriptor) if descriptor is not None else None

    async def wait_unused(self, engine: str, sha256: str, timeout: float) -> Unused | None:
        """Wait until no request uses the adapter, and lock it like `try_unused`; None after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (unused := self.try_unused(engine, sha256)) is None and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
        return unused

    def last_used(self, engine: str, sha256: str) -> float:
        """End of the adapter's last use in Unix seconds; 0.0 for never."""
        try:
            return _path(self._folder, engine, sha256).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def touch(self, engine: str, sha256: str) -> None:
        """Let the adapter count as used now, since it was just loaded for a request."""
        _path(self._folder, engine, sha256).touch(mode=0o600)


class Unused:
    """A lock on an adapter: no request can use it before `close` is called."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> Unused:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)


def prune(folder: Path, engines: Collection[str], weights: Collection[str], unused_since: float) -> int:
    """Remove the files of engines and adapters that are gone, last used before `unused_since` (Unix seconds). Those
    that a request holds stay. Returns how many were removed."""
    prefixes = {file_name(engine) for engine in engines}
    removed = 0
    for path in list(folder.iterdir()):
        prefix, _, key = path.name.rpartition("-")
        if prefix in prefixes and (key == ENGINE or key in weights):
            continue
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < unused_since and (descriptor := _lock(path, fcntl.LOCK_EX)) is not None:
                with Unused(descriptor):
                    path.unlink()
                removed += 1
    return removed


def _lock(path: Path, how: int) -> int | None:
    """The descriptor of the locked file, or None where another process's lock excludes it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # it was removed between the two steps: the next one gets a new file


def _path(folder: Path, engine: str, sha256: str) -> Path:
    return folder / f"{file_name(engine)}-{sha256}"
