"""Keeps a vLLM server running for each base: start, health, backoff, and why it died."""

from __future__ import annotations

import logging
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.config import Base, Settings, child_environment
from tunewright.engine.client import probe
from tunewright.engine.command import engine_command, engine_environment, socket_folder
from tunewright.registry.bases import BaseInfo, BaseUnavailable, inspect_base
from tunewright.registry.data_folder import DataFolder
from tunewright.scheduler.reports import exit_words
from tunewright.store.states import EngineState
from tunewright.store.store import Store
from tunewright.supervisor.process import ProcessGroup

log = logging.getLogger("tunewright.scheduler")

_BACKOFF_FIRST, _BACKOFF_LAST = 2.0, 120.0
_PROBE_STARTING, _PROBE_READY = 0.5, 2.0
"""Seconds between looks at an engine."""
_PROBES_FAILED_UNTIL_DEAD = 5
_STABLE_AFTER = 120.0


@dataclass
class _Served:
    base: Base
    device: str
    share: float
    info: BaseInfo | None = None
    group: ProcessGroup | None = None
    state: EngineState = EngineState.STOPPED
    start_at: float = 0.0
    started_at: float = 0.0
    backoff: float = _BACKOFF_FIRST
    probe: Future[dict[str, Any] | None] | None = None
    probed_at: float = 0.0
    probes_failed: int = 0
    inspection: Future[BaseInfo] | None = None
    socket: Path = field(default_factory=Path)


class EngineKeeper:
    """One engine for each named base. `tick()` never blocks for long: probes run in threads."""

    def __init__(
        self, settings: Settings, store: Store, data: DataFolder, lifeline: int, devices: list[str]
    ) -> None:
        self._settings = settings
        self._store = store
        self._data = data
        self._lifeline = lifeline
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="probe")
        on_device: dict[str, int] = {}
        placed = [(base, devices[i % len(devices)]) for i, base in enumerate(settings.bases)]
        for _, device in placed:
            on_device[device] = on_device.get(device, 0) + 1
        self._served = [
            _Served(base, device, settings.gpu_memory_utilization / on_device[device])
            for base, device in placed
        ]
        sockets = socket_folder(data.path)
        for index, served in enumerate(self._served):
            served.socket = sockets / f"engine-{index}.sock"
        store.engines.declare([base.name for base in settings.bases])
        self._adopt()

    def base(self, name: str) -> BaseInfo | None:
        """The base, once it was found to be there."""
        return next((s.info for s in self._served if s.base.name == name), None)

    def bases_here(self) -> list[str]:
        """Names of the bases that can be trained on now."""
        return [served.base.name for served in self._served if served.info is not None]

    def tick(self) -> None:
        for served in self._served:
            if served.info is None:
                self._inspect(served)
            elif served.group is None:
                if time.monotonic() >= served.start_at:
                    self._start(served, served.info)
            elif not served.group.is_alive():
                self._died(served, self._last_words(served))
            else:
                served.group.keep_watched(self._lifeline, _title(served))
                self._look(served)

    def stop(self, grace: float) -> None:
        """End all engines, together."""
        groups = [s.group for s in self._served if s.group is not None]
        for group in groups:
            group.terminate()
        deadline = time.monotonic() + grace
        for group in groups:
            group.wait(max(0.0, deadline - time.monotonic()))
            group.end()
        for served in self._served:
            self._store.engines.set_state(served.base.name, EngineState.STOPPED)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _adopt(self) -> None:
        """Take over engines that an earlier scheduler left running; what is half-dead is ended."""
        for served in self._served:
            record = self._record(served)
            group = ProcessGroup.adopt(record)
            row = self._store.engines.get(served.base.name)
            if (
                group is not None
                and group.is_alive()
                and row is not None
                and row.socket == str(served.socket)
            ):
                served.group = group
                served.state = row.state if row.state is EngineState.READY else EngineState.STARTING
                served.started_at = time.monotonic()
                log.info("engine %s still runs (pid %s)", served.base.name, group.pid)
            elif group is not None:
                group.end()
            if served.group is None:
                self._store.engines.set_state(served.base.name, EngineState.STOPPED)

    def _inspect(self, served: _Served) -> None:
        """Find the base, maybe downloading it, in a thread."""
        if served.inspection is None:
            if time.monotonic() >= served.start_at:
                served.inspection = self._threads.submit(inspect_base, served.base)
            return
        if not served.inspection.done():
            return
        inspection, served.inspection = served.inspection, None
        try:
            served.info = inspection.result()
        except (BaseUnavailable, OSError) as error:
            self._back_off(served, str(error))

    def _start(self, served: _Served, info: BaseInfo) -> None:
        name = served.base.name
        served.socket.unlink(missing_ok=True)
        folder = self._data.engine(name)
        log_file = folder / "engine.log"
        if log_file.exists():
            log_file.replace(folder / "engine.log.1")
        self._store.engines.starting(
            name,
            str(served.socket),
            {
                "device": served.device,
                "internal_name": info.internal_name,
                "fingerprint": info.fingerprint,
                "path": str(info.path),
                "has_chat_template": info.chat_template is not None,
                "max_model_len": info.context,
                "vocab_size": info.vocab_size,
                "max_lora_rank": self._settings.max_lora_rank,
                "max_adapters": max(self._settings.max_cpu_loras, self._settings.max_loras),
            },
        )
        command = engine_command(
            self._settings,
            info,
            served.socket,
            on_gpu=served.device.startswith("cuda"),
            memory_share=served.share,
        )
        with log_file.open("wb") as output:
            served.group = ProcessGroup.start(
                command,
                record_path=self._record(served),
                environment=child_environment(engine_environment(served.device)),
                lifeline=self._lifeline,
                output=output,
                title=_title(served),
            )
        served.state = EngineState.STARTING
        served.started_at = time.monotonic()
        served.probes_failed = 0
        log.info("engine %s starts on %s (pid %s, log %s)", name, served.device, served.group.pid, log_file)

    def _look(self, served: _Served) -> None:
        """Ask a running engine how it is; one question at a time."""
        now = time.monotonic()
        if served.probe is None:
            every = _PROBE_READY if served.state is EngineState.READY else _PROBE_STARTING
            if now - served.probed_at >= every:
                served.probed_at = now
                served.probe = self._threads.submit(probe, served.socket)
            return
        if not served.probe.done():
            return
        answer, served.probe = served.probe.result(), None
        if answer is not None:
            served.probes_failed = 0
            if now - served.started_at > _STABLE_AFTER:
                served.backoff = _BACKOFF_FIRST
            if served.state is not EngineState.READY:
                self._is_ready(served, answer)
        elif served.state is EngineState.READY:
            served.probes_failed += 1
            if served.probes_failed >= _PROBES_FAILED_UNTIL_DEAD:
                self._died(served, "it stopped answering")
        elif now - served.started_at > self._settings.engine_start_timeout:
            self._died(served, f"it did not start within {self._settings.engine_start_timeout:.0f} s")

    def _is_ready(self, served: _Served, answer: dict[str, Any]) -> None:
        row = self._store.engines.get(served.base.name)
        assert row is not None and served.info is not None
        context = next(
            (m.get("max_model_len") for m in answer["data"] if m["id"] == served.info.internal_name), None
        )
        info = {**(row.info or {}), "max_model_len": context or served.info.context}
        self._store.engines.set_state(
            served.base.name, EngineState.READY, reason=None, ready_at=time.time(), info=info
        )
        served.state = EngineState.READY
        log.info("engine %s is ready after %.0f s", served.base.name, time.monotonic() - served.started_at)

    def _died(self, served: _Served, why: str) -> None:
        assert served.group is not None
        served.group.end()
        served.group = None
        served.probe = None
        self._back_off(served, why)

    def _back_off(self, served: _Served, why: str) -> None:
        served.start_at = time.monotonic() + served.backoff
        log.error("engine %s: %s; trying again in %.0f s", served.base.name, why, served.backoff)
        served.backoff = min(served.backoff * 2, _BACKOFF_LAST)
        served.state = EngineState.BACKOFF
        self._store.engines.set_state(served.base.name, EngineState.BACKOFF, reason=why)

    def _record(self, served: _Served) -> Path:
        return self._data.engine(served.base.name) / "process.json"

    def _last_words(self, served: _Served) -> str:
        """How it ended, and vLLM's own reason, picked out of its log."""
        assert served.group is not None
        code = served.group.exit_code
        how = "" if code is None else f" with {exit_words(code)}"
        log_file = self._data.engine(served.base.name) / "engine.log"
        return f"it ended{how}: {last_error(log_file)} (see {log_file})"


def _title(served: _Served) -> str:
    return f"tunewright: lifeline of engine {served.base.name}"


_ERROR_LINE = re.compile(
    r"^(?:\([^)]*\)\s*)?(?:ERROR .*\] )?(?P<text>(?:[A-Za-z_.]*(?:Error|Exception)\b|.*: error:).*)$"
)
_DEATH_LINE = re.compile(r".*\b(?P<text>Worker proc \S+ died unexpectedly \(exit code: \S+\)).*$")
_CORE_DEATH = re.compile(r"engine core exited unexpectedly|EngineDeadError")
_USELESS = (
    "Engine core initialization failed",
    "See root cause above",
    "EngineDeadError",
    "stream generator",
)


def last_error(log_file: Path) -> str:
    """What a log tells of an end: the last line that names an error, without vLLM's prefixes, or a process's death."""
    try:
        with log_file.open("rb") as file:
            file.seek(max(0, log_file.stat().st_size - 65536))
            lines = [
                line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()
            ]
    except OSError:
        return "no log"
    errors = [
        m["text"] for m in map(_ERROR_LINE.match, lines) if m and not any(u in m["text"] for u in _USELESS)
    ]
    deaths = [m["text"] for m in map(_DEATH_LINE.match, lines) if m]
    if not deaths and any(map(_CORE_DEATH.search, lines)):
        deaths = [
            "EngineCore was killed or crashed; if the machine's memory ran out, the system's log says so"
        ]
    return (errors or deaths or ["its log names no error"])[-1][:500]
