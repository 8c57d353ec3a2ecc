"""Writes the api's heartbeat, which the supervisor checks, and checks the heartbeat of the engine worker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from tunewright.supervisor.heartbeat import PERIOD, HeartbeatWatch, beat

log = logging.getLogger("tunewright.api")


class ApiHeartbeat:
    """Touches the heartbeat file from the event loop, if LitServe's queues have answered since the last beat.

    The queues have a process of their own, which is replaced only by a restart of the api. While that process hangs,
    the api counts as hung.
    """

    def __init__(self, path: Path, ask_queues: Callable[[], object]) -> None:
        """`ask_queues` is called periodically in a thread, and may block."""
        self._path = path
        self._ask_queues = ask_queues
        self._answered = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._ask, name="queues-answer", daemon=True).start()

    def beat(self) -> None:
        """Touch the file if the queues have answered. Does not block."""
        if self._answered.is_set():
            self._answered.clear()
            beat(self._path)

    def _ask(self) -> None:
        while True:
            try:
                self._ask_queues()
            except (OSError, EOFError):  # their process has ended, and the api ends because of that
                return
            self._answered.set()
            time.sleep(PERIOD / 2)


def watch_worker(workers: list[BaseProcess], watch: HeartbeatWatch) -> None:
    """Kill the engine worker whenever it hangs. Does not return.

    `workers` is LitServe's own list, in which its monitor replaces a worker that has ended.
    """
    watched: BaseProcess | None = None
    while True:
        time.sleep(PERIOD)
        worker = workers[0]
        if worker is not watched:
            watched = worker
            watch.begin()
        elif worker.is_alive() and watch.hangs():
            log.error(
                "the engine worker hangs: no sign of life for %.0f s; it is killed and started again",
                watch.limit,
            )
            worker.kill()
