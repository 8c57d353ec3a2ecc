"""`tunewright serve`: starts the api and the scheduler, restarts them when they end or hang, owns the lifeline.

It knows the commands and their heartbeat files, not what they do. When it ends, in whatever way, the lifeline closes
and no process is left.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tunewright.supervisor.heartbeat import HeartbeatWatch
from tunewright.supervisor.process import ProcessGroup
from tunewright.supervisor.standby import Standby

log = logging.getLogger("tunewright.supervisor")

_PR_SET_CHILD_SUBREAPER = 36
_BACKOFF_FIRST, _BACKOFF_LAST, _STABLE_AFTER = 0.2, 30.0, 30.0
_STANDBY_AFTER = 5.0
"""Seconds that a service has run when its standby is started, so that their starts do not slow each other."""
_LOOK_AGAIN = 0.25
"""Seconds between two looks at what tells nobody when it changes: heartbeats, the lifelines' watchers, `Reload`."""


@dataclass
class Service:
    """A command that should always run."""

    name: str
    command: list[str]
    grace: float
    """Seconds that it has to stop."""
    group: ProcessGroup | None = None
    backoff: float = _BACKOFF_FIRST
    started_at: float = 0.0
    start_at: float = 0.0
    descriptors: tuple[int, ...] = ()
    """File descriptors that it inherits beside the lifeline: a listening socket, say."""
    heartbeat: HeartbeatWatch | None = None
    """Watches its heartbeat: a service that hangs is killed and started again."""
    has_standby: bool = False
    """Whether a standby is kept. The command must then take `--standby DESCRIPTOR` (see `standby`)."""
    standby: Standby | None = None
    standby_at: float = 0.0
    """When another standby may be started: one that ends at once is not tried all the time."""


@dataclass(frozen=True)
class Reload:
    """An action that is carried out, when needed, while none of the services runs."""

    is_wanted: Callable[[], bool]
    """Whether the action is needed. Called a few times a second."""
    carry_out: Callable[[], None]
    """The action, after which `is_wanted` must be false. An exception ends the supervisor."""


class Supervisor:
    """Keeps `services` running until it gets a signal to stop; they are stopped in the order given."""

    def __init__(
        self,
        services: list[Service],
        environment: Mapping[str, str],
        run_dir: Path,
        reload: Reload | None = None,
        each_round: Callable[[], object] = lambda: None,
    ) -> None:
        """`each_round`: called a few times a second, and must return at once."""
        self._services = services
        self._reload = reload
        self._each_round = each_round
        self._environment = environment
        self._run_dir = run_dir
        self._stopping = False
        self._lifeline, self._lifeline_write = os.pipe()  # neither end is inherited unless passed on
        self._signals, self._signals_write = os.pipe()
        for end in (self._signals, self._signals_write):
            os.set_blocking(end, False)

    def run(self) -> int:
        """Run until SIGINT, SIGTERM or SIGHUP. Returns the exit code."""
        _become_subreaper()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask_to_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler it would not wake anybody
        signal.set_wakeup_fd(self._signals_write, warn_on_full_buffer=False)
        try:
            while not self._stopping:
                if self._reload is not None and self._reload.is_wanted():
                    log.info("stopping all services for a while")
                    self._stop_services()
                    self._reload.carry_out()
                    continue
                for service in self._services:
                    self._keep(service)
                _reap_adopted(
                    {process.pid for s in self._services for process in (s.group, s.standby) if process}
                )
                self._each_round()
                self._wait()
        finally:
            self._stop_all()
        return 0

    def _wait(self) -> None:
        """Until a child has ended or another signal has come, a service is due, or it is time to look again."""
        now = time.monotonic()
        due = [service.start_at - now for service in self._services if service.group is None]
        if select.select([self._signals], [], [], max(0.0, min([_LOOK_AGAIN, *due])))[0]:
            os.read(self._signals, 4096)

    def _ask_to_stop(self, number: int, frame: object) -> None:
        first, self._stopping = not self._stopping, True
        if first:
            with suppress(OSError):  # stderr may be a file on a full disk
                print(
                    "\nStopping: running jobs save a checkpoint, engines end...", file=sys.stderr, flush=True
                )

    def _keep(self, service: Service) -> None:
        now = time.monotonic()
        if service.group is not None:
            wrong = _what_is_wrong(service, service.group)
            if wrong is None:
                with suppress(OSError):  # its watcher was killed and cannot be replaced now: soon
                    service.group.keep_watched(self._lifeline, _title(service))
                if now - service.started_at > _STABLE_AFTER:
                    service.backoff = _BACKOFF_FIRST
                if service.has_standby and now - service.started_at > _STANDBY_AFTER:
                    self._keep_standby(service)
                return
            if service.standby is not None and not service.standby.can_take_over():
                service.standby.end()
                service.standby = None
            takes_over = service.standby is not None
            what = "its standby takes over" if takes_over else f"starting it again in {service.backoff:.1f} s"
            log.warning("%s %s; %s", service.name, wrong, what)
            service.group.end()  # with SIGKILL, which reaches stopped processes too
            service.group = None
            if not takes_over:
                self._back_off(service)
        if now >= service.start_at:
            try:
                self._start(service)
            except OSError as error:  # the disk is full, say, or the limit of processes is reached
                log.error(
                    "%s cannot be started: %s; trying again in %.1f s", service.name, error, service.backoff
                )
                self._back_off(service)

    def _start(self, service: Service) -> None:
        record_path = self._run_dir / f"{service.name}.json"
        standby, service.standby = service.standby, None
        if standby is not None:
            service.group = standby.take_over(record_path)
        else:
            service.group = ProcessGroup.start(
                service.command,
                record_path=record_path,
                environment=self._environment,
                lifeline=self._lifeline,
                descriptors=service.descriptors,
                title=_title(service),
            )
        service.started_at, service.standby_at = time.monotonic(), 0.0
        if service.heartbeat is not None:
            service.heartbeat.begin()

    def _keep_standby(self, service: Service) -> None:
        if service.standby is not None:
            if service.standby.is_alive():
                return
            log.warning("the standby of %s has ended", service.name)
            service.standby.end()
            service.standby = None
        if time.monotonic() < service.standby_at:
            return
        service.standby_at = time.monotonic() + _BACKOFF_LAST
        try:
            service.standby = Standby.start(
                service.command,
                record_path=self._run_dir / f"{service.name}-standby.json",
                environment=self._environment,
                lifeline=self._lifeline,
                descriptors=service.descriptors,
                title=_title(service),
            )
        except OSError as error:
            log.warning("no standby of %s can be started: %s", service.name, error)

    def _back_off(self, service: Service) -> None:
        service.start_at = time.monotonic() + service.backoff
        service.backoff = min(service.backoff * 2, _BACKOFF_LAST)

    def _stop_all(self) -> None:
        self._stop_services()
        os.close(self._lifeline_write)

    def _stop_services(self) -> None:
        groups = [(s, s.group) for s in self._services if s.group is not None]
        for service in self._services:
            if service.standby is not None:
                service.standby.end()
                service.standby = None
        for _, group in groups:
            group.terminate()
        asked = time.monotonic()
        for service, group in groups:
            if not group.wait(max(0.0, asked + service.grace - time.monotonic())):
                log.warning("%s did not stop within %.0f s; killing it", service.name, service.grace)
            group.end()
            service.group, service.start_at, service.backoff = None, 0.0, _BACKOFF_FIRST


def _what_is_wrong(service: Service, group: ProcessGroup) -> str | None:
    """The reason why a service has to be started again; None while it runs and its heartbeat changes."""
    if not group.is_alive():
        return f"ended with code {group.exit_code}"
    if service.heartbeat is not None and service.heartbeat.hangs():
        return f"hangs, without a sign of life for {service.heartbeat.limit:.0f} s: killed"
    return None


def _title(service: Service) -> str:
    return f"tunewright: lifeline of {service.name}"


def _become_subreaper() -> None:
    """Become the parent of the scheduler's orphans, so that none stays a zombie where there is no init (containers)."""
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (OSError, AttributeError):  # not Linux: init reaps them
        log.debug("no subreaper on this system")


def _reap_adopted(own: set[int | None]) -> None:
    """Collect exit codes of processes that we did not start ourselves."""
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if info is None or info.si_pid in own:
            return  # a service: its Popen collects it
        try:
            os.waitpid(info.si_pid, os.WNOHANG)
        except ChildProcessError:
            return
