"""Work in threads on behalf of the scheduler's loop, which must not block: one piece of work for each key."""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    def __init__(self, workers: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(max_workers=workers, thread_name_prefix=name)
        self._running: dict[str, Future[None]] = {}
        self._not_before: dict[str, float] = {}

    def is_running(self, key: str) -> bool:
        """Whether the work goes on, or waits for a thread."""
        future = self._running.get(key)
        return future is not None and not future.done()

    def start(self, key: str, work: Callable[[], None]) -> None:
        """Start it, unless it was put off and its time has not come."""
        if key not in self._running and time.monotonic() >= self._not_before.get(key, 0.0):
            self._running[key] = self._threads.submit(work)

    def collect(self, key: str) -> Future[None] | None:
        """Work that is done, once."""
        future = self._running.get(key)
        if future is None or not future.done():
            return None
        return self._running.pop(key)

    def put_off(self, key: str, seconds: float) -> bool:
        """Start it no sooner; whether it is put off for the first time."""
        is_first = key not in self._not_before
        self._not_before[key] = time.monotonic() + seconds
        return is_first

    def forget(self, key: str) -> None:
        self._not_before.pop(key, None)
        self._running.pop(key, None)

    def keep_only(self, keys: Container[str]) -> None:
        """Forget what was done or put off for others."""
        for known in (self._running, self._not_before):
            for key in [key for key in known if key not in keys]:
                del known[key]

    def stop(self) -> None:
        """Start nothing more, and do not wait for what runs."""
        self._threads.shutdown(wait=False, cancel_futures=True)
