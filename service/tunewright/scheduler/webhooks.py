"""Starts and watches the process that delivers webhooks (`tunewright.webhooks`), while there is something to deliver.

It is a process of its own: neither what endpoints do nor a fault in it can hold up the scheduler. A new scheduler finds
the process of a killed one by its record.
"""

from __future__ import annotations

import logging
import sys
import time

from tunewright.config import Settings, child_environment
from tunewright.registry.workspace import Workspace
from tunewright.scheduler.processes import ChildProcess, last_line
from tunewright.store.store import Store

log = logging.getLogger("tunewright.scheduler")

_NAME = "webhooks"
_BACKOFF_FIRST, _BACKOFF_LAST = 1.0, 60.0
"""Seconds before the process is started again that has ended with a failure: the first time, and at most."""


class WebhookKeeper:
    """A part of the scheduler. `tick()` does not block."""

    def __init__(self, settings: Settings, store: Store, workspace: Workspace, lifeline: int) -> None:
        self._settings = settings.without_keys()  # it needs none, and talks to strangers
        self._store = store
        self._lifeline = lifeline
        self._limit = settings.processes.hang_timeout
        self._heartbeat = workspace.heartbeat("webhooks")
        self._record = workspace.run / "webhooks.json"
        self._log = workspace.run / "webhooks.log"
        self._process = ChildProcess.adopt(self._record, log_file=self._log, lifeline=lifeline, name=_NAME)
        self._start_at = 0.0
        self._backoff = _BACKOFF_FIRST

    def tick(self) -> None:
        if self._process is not None:
            self._watch(self._process)
        elif time.monotonic() >= self._start_at and self._is_due():
            self._start()

    def stop(self, grace: float) -> None:
        """Ask the process to end, and end it after `grace` seconds."""
        if self._process is not None:
            self._process.terminate()
            self._process.group.wait(grace)
            self._process.end()

    def _is_due(self) -> bool:
        due_at = self._store.latest(self._store.webhooks.next_due)
        return due_at is not None and due_at <= time.time()

    def _start(self) -> None:
        self._process = ChildProcess.start(
            [sys.executable, "-m", "tunewright.webhooks"],
            record=self._record,
            log_file=self._log,
            environment=child_environment(self._settings.handover()),
            lifeline=self._lifeline,
            name=_NAME,
            append=True,
        )

    def _watch(self, process: ChildProcess) -> None:
        if process.is_alive():
            if process.silent_for(self._beaten_at()) <= self._limit:
                return
            process.abort(self._limit)
        how = process.exit()
        process.end()
        self._process = None
        if how.code in (0, None):  # None: it was an earlier scheduler's, and its code is not known
            self._backoff = _BACKOFF_FIRST
            return
        self._start_at = time.monotonic() + self._backoff
        log.error(
            "the process of webhooks ended with %s: %s; trying again in %.0f s",
            how.description, last_line(self._log), self._backoff,
        )  # fmt: skip
        self._backoff = min(self._backoff * 2, _BACKOFF_LAST)

    def _beaten_at(self) -> int | None:
        try:
            return self._heartbeat.stat().st_mtime_ns
        except OSError:
            return None
