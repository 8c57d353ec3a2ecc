"""The scheduler's process, `python -m tunewright.scheduler`, started by the supervisor."""

from __future__ import annotations

import gc
import logging
import signal
import time

from setproctitle import setproctitle

from tunewright import tracing
from tunewright.config import settings_in_child
from tunewright.engine.devices import find_devices
from tunewright.logs import configure_logging
from tunewright.registry.workspace import Workspace
from tunewright.scheduler.bucket import BucketKeeper
from tunewright.scheduler.devices import Devices
from tunewright.scheduler.engines import EngineKeeper
from tunewright.scheduler.fork_server import ForkServer
from tunewright.scheduler.job_traces import JobTraces
from tunewright.scheduler.jobs import JobRunner
from tunewright.scheduler.parity import ParityChecker
from tunewright.scheduler.retention import Retention
from tunewright.scheduler.webhooks import WebhookKeeper
from tunewright.store.store import Store
from tunewright.supervisor.heartbeat import beat
from tunewright.supervisor.process import inherited_lifeline

log = logging.getLogger("tunewright.scheduler")

_TICK = 0.2
"""Seconds between two rounds."""
_REST, _LOOK = 1.0, 0.1
"""Seconds between two rounds while nothing runs, and between two looks whether the database was changed meanwhile."""
_TRAINER_GRACE, _ENGINE_GRACE, _WEBHOOK_GRACE, _FLUSH = 8.0, 4.0, 1.0, 0.5
"""Seconds that processes have to stop, and that the last spans may take; together less than the 15 s in which
`tunewright serve` promises to end."""


def main() -> int:
    settings = settings_in_child()
    setproctitle("tunewright: scheduler")
    configure_logging(settings.processes.log_level, settings.telemetry.log_format)
    stopping = False

    def ask_to_stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, ask_to_stop)
    store = Store.open(settings.storage.resolved_database_url)
    workspace = Workspace.of(settings.storage)
    devices = Devices(find_devices(settings.processes), store)
    lifeline = inherited_lifeline()
    engines = EngineKeeper(settings, store, workspace, lifeline, devices)
    forks = ForkServer(workspace.run, lifeline, settings.jobs.fork_server_idle)
    parity = ParityChecker(settings, store, workspace, lifeline, devices, forks)
    tracing.start(settings.telemetry.otlp_endpoint, "scheduler")
    traces = JobTraces(store, workspace)
    jobs = JobRunner(settings, store, workspace, engines, lifeline, devices, forks, traces)
    retention = Retention(settings.retention, store, workspace)
    bucket = BucketKeeper(settings.storage, store, workspace)
    webhooks = WebhookKeeper(settings, store, workspace, lifeline)
    gc.freeze()  # the collector need not look at what is imported
    gc.enable()
    heartbeat = workspace.heartbeat("scheduler")
    changes = store.database.changes()

    def may_rest(version: tuple[int, int] | None) -> bool:
        """Whether nothing runs, and the database is as it was in this version."""
        idle = all(part.is_at_rest for part in (engines, jobs, parity))
        return idle and changes is not None and version is not None and changes.version() == version

    while not stopping:
        version = changes.version() if changes is not None else None
        for part in (engines, jobs, parity, forks, retention, bucket, webhooks, traces):
            try:
                part.tick()
            except Exception:  # one bad row or a full disk must not end the scheduler
                log.exception("%s: a round failed; trying again", type(part).__name__)
                time.sleep(1)
            # after each part, since one may wait 30 s for the database's lock
            beat(heartbeat)
        time.sleep(_TICK)
        rest_until = time.monotonic() + _REST - _TICK
        while not stopping and time.monotonic() < rest_until and may_rest(version):
            time.sleep(_LOOK)
    retention.stop()
    webhooks.stop(_WEBHOOK_GRACE)
    parity.stop()
    jobs.stop(_TRAINER_GRACE)
    forks.stop()
    engines.stop(_ENGINE_GRACE)
    traces.tick()
    traces.stop()
    store.close()
    tracing.stop(_FLUSH)
    return 0
