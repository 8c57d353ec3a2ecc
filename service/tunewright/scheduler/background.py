"""Tasks that run in threads, so that the scheduler's loop does not block: at most one task for each key."""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context


class Background:
    """A pool of threads, and the tasks that were started in it, by key."""

    def __init__(self, workers: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(max_workers=workers, thread_name_prefix=name)
        self._running: dict[str, Future[None]] = {}
        self._not_before: dict[str, float] = {}

    def is_running(self, key: str) -> bool:
        """Whether the task runs or waits for a thread."""
        future = self._running.get(key)
        return future is not None and not future.done()

    def start(self, key: str, task: Callable[[], None]) -> None:
        """Start a task, unless the key has one already or was postponed to a later time."""
        if key not in self._running and time.monotonic() >= self._not_before.get(key, 0.0):
            self._running[key] = self._threads.submit(
                copy_context().run, task
            )  # with the fields of log lines

    def collect(self, key: str) -> Future[None] | None:
        """The finished task of this key, which is returned once; None where none has finished."""
        future = self._running.get(key)
        if future is None or not future.done():
            return None
        return self._running.pop(key)

    def postpone(self, key: str, seconds: float) -> bool:
        """Do not start a task for this key in the next `seconds`. Returns whether this is the first time."""
        is_first = key not in self._not_before
        self._not_before[key] = time.monotonic() + seconds
        return is_first

    def forget(self, key: str) -> None:
        """Drop the key's task and its postponement."""
        self._not_before.pop(key, None)
        self._running.pop(key, None)

    def keep_only(self, keys: Container[str]) -> None:
        """Drop the tasks and postponements of all other keys."""
        for known in (self._running, self._not_before):
            for key in [key for key in known if key not in keys]:
                del known[key]

    def stop(self) -> None:
        """Start no more tasks, and do not wait for those that run."""
        self._threads.shutdown(wait=False, cancel_futures=True)
