"""Keeps a vLLM server running for each base and each deployment: start, health, backoff, drain, reason of its end."""

from __future__ import annotations

import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from tunewright.config import Settings, child_environment
from tunewright.engine import leftovers
from tunewright.engine.batches import most_sequences
from tunewright.engine.client import EngineDead, find_fault, probe
from tunewright.engine.command import (
    EngineOptions,
    engine_command,
    engine_environment,
    short_temporary_folder,
    socket_folder,
    tracing_environment,
)
from tunewright.engine.leases import ENGINE, Drain
from tunewright.engine.placement import options_of_bases, place, still_fits
from tunewright.engine.slots import read_cost
from tunewright.engine.trust import trusts_code
from tunewright.engine.versions import unsuited_vllm
from tunewright.errors import InvalidRequest, StorageUnavailable
from tunewright.registry.bases import BaseInfo, BaseUnavailable, inspect_base
from tunewright.registry.workspace import Workspace
from tunewright.scheduler.devices import Devices
from tunewright.scheduler.engine_log import last_error, reason_of_end, reason_of_lost
from tunewright.scheduler.fork_server import fork_server_of_engines
from tunewright.scheduler.processes import ChildProcess, stop_all
from tunewright.scheduler.served import Served, Source, context_of, parts_of, row_of, socket_name, source_of
from tunewright.scheduler.slots import options_to_start
from tunewright.scheduler.temporary import is_temporary
from tunewright.store.records import Deployment
from tunewright.store.states import EngineState
from tunewright.store.store import Store

log = logging.getLogger("tunewright.scheduler")

_PROBE_EVERY = 0.5
"""Seconds between two health probes."""
_PROBES_FAILED_UNTIL_DEAD = 5
_SEARCH_EVERY = 5.0
"""Seconds between two searches for a fault of a healthy engine."""
_FAULTS_UNTIL_DEAD = 2
_STABLE_AFTER = 120.0
"""Seconds of running after which the backoff is reset."""
_END_GRACE = 4.0
"""Seconds that a drained engine has to end."""
MAX_STARTS = 3
"""Failed starts of a deployment that was never ready, after which it is not started again until a user asks."""


class EngineKeeper:
    """One engine for each base and each deployment. `tick()` never blocks for long: probes run in threads."""

    def __init__(
        self, settings: Settings, store: Store, workspace: Workspace, lifeline: int, devices: Devices
    ) -> None:
        self._settings = settings
        self._store = store
        self._workspace = workspace
        self._lifeline = lifeline
        self._devices = devices
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="probe")
        self._searches = ThreadPoolExecutor(max_workers=4, thread_name_prefix="search")
        self._drains = Drain(workspace.leases)
        self._forks = fork_server_of_engines(workspace.run, lifeline, settings.jobs.fork_server_idle)
        self._sockets = socket_folder(workspace.path)
        self._served: dict[str, Served] = {}
        options = options_of_bases(settings, devices.names)
        store.engines.declare(list(options))
        for base in settings.models.bases:
            trusted = trusts_code(settings.models, store, base.name)
            self._add(Served(base.name, options[base.name], Source(base, trusted)))
        self._sync()

    def base(self, name: str) -> BaseInfo | None:
        """The base or deployed model of this name; None until its files were found."""
        served = self._served.get(name)
        return served.info if served is not None else None

    def names(self) -> list[str]:
        """Names of the bases and deployed models that can be trained on, whether or not their files were found yet."""
        return list(self._served)

    def available_bases(self) -> list[str]:
        """Names of the bases and deployed models that can be trained on now."""
        return [name for name, served in self._served.items() if served.info is not None]

    def tick(self) -> None:
        self._sync()
        self._forks.tick()
        for served in list(self._served.values()):
            if served.deployment is not None and served.deployment.is_draining:
                self._drain(served, served.deployment)
            elif served.state is EngineState.FAILED:
                continue
            elif served.info is None:
                self._inspect(served)
            elif served.process is None:
                if served.command is not None:
                    self._launch(served, served.command)
                elif time.monotonic() >= served.start_at:
                    self._start(served, served.info)
            elif not served.process.is_alive():
                self._died(served, reason_of_end(served.process.exit(), self._log(served), served.deployment))
            elif (part := served.lost_part()) is not None:
                self._died(served, reason_of_lost(part, self._log(served)))
            else:
                self._check_health(served)

    @property
    def is_at_rest(self) -> bool:
        """Whether no engine runs, starts, or has to be started."""
        return all(served.is_at_rest for served in self._served.values())

    def stop(self, grace: float) -> None:
        """End all engines, together."""
        running = [served for served in self._served.values() if served.process is not None]
        stop_all([served.process for served in running if served.process is not None], grace)
        for served in running:
            self._end(served)
        self._forks.stop()
        for served in self._served.values():
            if served.state is not EngineState.FAILED:
                self._store.engines.set_state(served.name, EngineState.STOPPED)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._searches.shutdown(wait=False, cancel_futures=True)

    # the models to serve

    def _sync(self) -> None:
        """Read the deployments from the store: new ones, ones to drain, ones to start again."""
        for deployment, engine in self._store.latest(self._store.deployments.all):
            served = self._served.get(deployment.model)
            if served is None:
                options = EngineOptions(**deployment.options)
                served = Served(deployment.model, options, None, deployment)
                if engine is not None and engine.state is EngineState.FAILED:
                    served.state = EngineState.FAILED
                self._add(served)
                self._keep_placed(served, deployment)
            served.deployment = deployment
            is_requested = engine is not None and engine.state is EngineState.STOPPED
            if is_requested and served.state in (EngineState.FAILED, EngineState.BACKOFF):
                served.start_now()
                self._keep_placed(served, deployment)

    def _add(self, served: Served) -> None:
        self._served[served.name] = served
        served.socket = self._sockets / socket_name(served.name, served.deployment)
        self._adopt(served)

    def _adopt(self, served: Served) -> None:
        """Adopt an engine that an earlier scheduler left running; end what is left of one that no longer works."""
        process = ChildProcess.adopt(
            self._record(served),
            log_file=self._log(served),
            lifeline=self._lifeline,
            name=f"engine {served.name}",
        )
        row = self._store.engines.get(served.name)
        if process and process.is_alive() and row is not None and row.socket == str(served.socket):
            served.process = process
            served.state = row.state if row.state is EngineState.READY else EngineState.STARTING
            served.faults = int(served.state is EngineState.READY and row.reason is not None)
            served.started_at = time.monotonic()
            log.info("engine %s is still running (pid %s)", served.name, process.pid)
            return
        if process is not None:
            process.end()
        leftovers.remove(self._workspace.engine(served.name))
        if served.state is not EngineState.FAILED:
            self._store.engines.set_state(served.name, EngineState.STOPPED)

    def _keep_placed(self, served: Served, deployment: Deployment) -> None:
        """Keep a deployment where it was placed, unless the devices or bases have changed and it no longer fits."""
        others = {name: one.options for name, one in self._served.items() if name != served.name}
        if served.process is not None or still_fits(served.options, self._devices.names, others):
            return
        try:
            served.options = place(
                self._settings.serving,
                self._devices.names,
                served.name,
                deployment.asked,
                others,
                weights=served.options.weights_bytes,
                free_memory=psutil.virtual_memory().available,
            )
        except InvalidRequest as error:
            self._give_up(served, deployment, error.message)
        else:
            self._store.deployments.place(deployment.id, asdict(served.options))

    def _inspect(self, served: Served) -> None:
        """Find the model in a thread, since it may have to be downloaded."""
        if served.inspection is None:
            if time.monotonic() >= served.start_at:
                served.inspection = self._threads.submit(self._find, served)
            return
        if not served.inspection.done():
            return
        inspection, served.inspection = served.inspection, None
        try:
            served.info = inspection.result()
        except (BaseUnavailable, OSError, StorageUnavailable) as error:
            self._back_off(served, str(error), counts=not is_temporary(error))

    def _find(self, served: Served) -> BaseInfo:
        if served.source is None:
            served.source = source_of(
                self._settings.models, self._store, self._workspace.artifacts, served.name
            )
        info = inspect_base(served.source.base, served.source.fingerprint)
        served.cost = read_cost(info.path) if self._devices.on_gpu else None
        return info

    # the life of one engine

    def _start(self, served: Served, info: BaseInfo) -> None:
        assert served.source is not None, "its model was found"
        if (unsuited := unsuited_vllm()) is not None:
            self._back_off(served, unsuited)
            return
        name, vllm_args = served.name, self._settings.serving.vllm_args
        options = options_to_start(served, vllm_args, self._store)
        served.socket.unlink(missing_ok=True)
        most = most_sequences(options, vllm_args, is_deployment=served.deployment is not None)
        started = row_of(served, info, options, most)
        if self._store.engines.starting(name, str(served.socket), started) is None:
            return  # the deployment was deleted just now
        served.command = engine_command(
            self._settings, info, served.socket, options, trust_remote_code=served.source.trust_remote_code
        )
        served.state = EngineState.STARTING
        self._launch(served, served.command)

    def _launch(self, served: Served, command: list[str]) -> None:
        """Start the process; on the CPU as soon as the one that it is forked from has imported vLLM."""
        devices, log_file = served.options.devices, self._log(served)
        if not served.options.on_gpu and not self._forks.prepare():
            return
        tagged = leftovers.prepare(self._workspace.engine(served.name), short_temporary_folder())
        served.process = ChildProcess.start(
            command,
            record=self._record(served),
            log_file=log_file,
            environment=child_environment(
                engine_environment(*devices) | tracing_environment(self._settings) | tagged
            ),
            lifeline=self._lifeline,
            name=f"engine {served.name}",
            launch=None if served.options.on_gpu else self._forks.launch,
        )
        served.command = served.parts = None
        served.started_at = time.monotonic()
        served.probes_failed = served.faults = 0
        on, pid = ", ".join(devices), served.process.pid
        log.info("engine %s starts on %s (pid %s, log %s)", served.name, on, pid, log_file)

    def _check_health(self, served: Served) -> None:
        """Probe a running engine, with at most one probe at a time."""
        now = time.monotonic()
        if served.probe is None:
            if now - served.probed_at >= _PROBE_EVERY:
                served.probed_at = now
                served.probe = self._threads.submit(probe, served.socket)
            return
        if not served.probe.done():
            return
        done, served.probe = served.probe, None
        try:
            answer = done.result()
        except EngineDead:
            self._died(served, f"its engine process ended: {last_error(self._log(served))}")
            return
        if answer is not None:
            served.probes_failed = 0
            if now - served.started_at > _STABLE_AFTER:
                served.reset_backoff()
            if served.state is not EngineState.READY:
                self._is_ready(served, answer)
            if served.parts is None and served.process is not None and served.process.pid is not None:
                served.parts = parts_of(served.process.pid)
            self._search_fault(served)
        elif served.state is EngineState.READY:
            served.probes_failed += 1
            if served.probes_failed >= _PROBES_FAILED_UNTIL_DEAD:
                self._died(served, "it stopped answering")
        elif now - served.started_at > self._settings.serving.engine_start_timeout:
            self._died(served, f"it did not start within {self._settings.serving.engine_start_timeout:.0f} s")

    def _search_fault(self, served: Served) -> None:
        """Have an engine that is healthy answer a small request now and then; start it again where it cannot."""
        assert served.info is not None
        if served.search is None:
            if time.monotonic() - served.searched_at >= _SEARCH_EVERY:
                served.searched_at = time.monotonic()
                served.search = self._searches.submit(find_fault, served.socket, served.info.internal_name)
            return
        if not served.search.done():
            return
        fault, served.search = served.search.result(), None
        if bool(fault) != bool(served.faults):  # told at once, while what it generates goes on
            self._store.engines.set_state(served.name, EngineState.READY, reason=fault)
        served.faults = served.faults + 1 if fault else 0
        if served.faults >= _FAULTS_UNTIL_DEAD:
            served.faults = 0
            self._died(served, f"{fault}, and was started again")

    def _is_ready(self, served: Served, answer: dict[str, Any]) -> None:
        row = self._store.engines.get(served.name)
        assert row is not None and row.info is not None and served.info is not None
        info = row.info.model_copy(update={"max_model_len": context_of(served.info, answer)})
        if served.deployment is not None:
            self._store.deployments.is_ready(served.deployment.id, info)
        else:
            self._store.engines.set_state(
                served.name, EngineState.READY, reason=None, ready_at=time.time(), info=info
            )
        served.state = EngineState.READY
        log.info("engine %s is ready after %.0f s", served.name, time.monotonic() - served.started_at)

    def _died(self, served: Served, why: str) -> None:
        served.probe = served.search = None
        try:
            self._back_off(served, why)  # first: the end of a process that has much memory takes seconds
        finally:
            self._end(served)

    def _end(self, served: Served) -> None:
        """Kill what is left of the engine, and remove what it leaves."""
        assert served.process is not None
        served.process.end()
        served.process = None
        leftovers.remove(self._workspace.engine(served.name))

    def _back_off(self, served: Served, why: str, *, counts: bool = True) -> None:
        deployment = served.deployment
        if counts and deployment is not None and not self._was_ready(deployment):
            failures = self._store.deployments.count_failure(deployment.id)
            if failures >= MAX_STARTS:
                self._give_up(served, deployment, why)
                return
        wait = served.back_off()
        log.error("engine %s: %s; trying again in %.0f s", served.name, why, wait)
        self._store.engines.set_state(served.name, EngineState.BACKOFF, reason=why)
        served.state = EngineState.BACKOFF

    def _was_ready(self, deployment: Deployment) -> bool:
        now = self._store.deployments.get(deployment.id)
        return now is not None and now[0].was_ready

    def _give_up(self, served: Served, deployment: Deployment, why: str) -> None:
        log.error("engine %s: %s; it is not started again until a user asks for it", served.name, why)
        self._store.deployments.fail(deployment.id, served.name, why)
        served.state = EngineState.FAILED

    def _drain(self, served: Served, deployment: Deployment) -> None:
        """End the engine after its last request, or at the deadline of the drain; then forget the deployment."""
        process = served.process
        if process is None:
            self._forget(served, deployment)
            return
        if served.end_by is None:
            served.unused = self._drains.try_unused(served.name, ENGINE)
            is_late = time.time() >= (deployment.drain_until or 0)
            if served.unused is None and process.is_alive() and not is_late:
                return
            process.terminate()
            served.end_by = time.monotonic() + _END_GRACE
        elif not process.is_alive() or time.monotonic() > served.end_by:
            self._end(served)
            self._forget(served, deployment)

    def _forget(self, served: Served, deployment: Deployment) -> None:
        self._store.deployments.remove(deployment.id)
        del self._served[served.name]
        if served.unused is not None:
            served.unused.close()
        served.socket.unlink(missing_ok=True)
        shutil.rmtree(self._workspace.engine(served.name), ignore_errors=True)
        log.info("the deployment of %s (%s) was removed", served.name, deployment.id)

    def _record(self, served: Served) -> Path:
        return self._workspace.engine(served.name) / "process.json"

    def _log(self, served: Served) -> Path:
        return self._workspace.engine(served.name) / "engine.log"
