"""A process that has imported torch and what is built on it, and forks for each job and each check; or vLLM's server,
and forks for each engine on the CPU.

It starts with the first of them, which waits until it has imported everything, as it would have had to itself. It ends
when it was not used for a while, since it keeps about 500 MB. Where it fails, processes start without it.
"""

from __future__ import annotations

import json
import logging
import select
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tunewright.config import child_environment
from tunewright.engine.command import VLLM_SERVER, engine_environment
from tunewright.scheduler.devices import CPU
from tunewright.scheduler.processes import ChildProcess, last_line
from tunewright.supervisor.forks import LARGEST_MESSAGE, Request
from tunewright.supervisor.process import Child, ProcessId, spawn

log = logging.getLogger("tunewright.scheduler")

MODULES = ("tunewright.trainer.run", "tunewright.export.run", "tunewright.evaluate.reference")
_IMPORT_SECONDS = 120.0
_ANSWER_SECONDS = 10.0
"""Seconds in which it must have forked."""
_REPORT_SECONDS = 2.0
"""Seconds after the end of a fork in which its exit code must have come."""
_AGAIN_AFTER = 300.0
"""Seconds in which processes start without it after it has failed."""


class ForkServer:
    """Starts, uses and ends it. Every method but `stop` returns soon, whatever state it is in."""

    def __init__(
        self,
        folder: Path,
        lifeline: int,
        idle: float,
        modules: Sequence[str] = MODULES,
        *,
        name: str = "fork server",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`folder` is for its record and its log; `idle`: seconds that it is kept without use, 0: it is never started;
        `environment`: variables, beside the inherited ones, that the modules read when they are imported. Ends what an
        earlier scheduler has left of it."""
        self._name = name
        self._environment = dict(environment or {})
        self._record = folder / f"{name.replace(' ', '-')}.json"
        self._log = self._record.with_suffix(".log")
        self._lifeline = lifeline
        self._idle = idle
        self._modules = modules
        self._process: ChildProcess | None = None
        self._channel: socket.socket | None = None
        self._is_ready = False
        self._used = self._began = 0.0
        self._not_before = 0.0
        self._forked: dict[int, Forked] = {}
        left = ChildProcess.adopt(self._record, log_file=self._log, lifeline=lifeline, name=f"the {name}")
        if left is not None:
            left.end()

    def prepare(self) -> bool:
        """Start it, where it does not run. Returns whether processes can be started now: False while it imports."""
        now = time.monotonic()
        if self._idle == 0 or now < self._not_before:
            return True
        self._used = now
        if self._process is None:
            self._start()
        self.receive()
        if self._process is None or self._is_ready:
            return True
        if not self._process.is_alive():
            self._fail(f"it ended: {last_line(self._log)}")
        elif now - self._began > _IMPORT_SECONDS:
            self._fail(f"it has not imported everything within {_IMPORT_SECONDS:.0f} s")
        return self._process is None

    def launch(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        output: int | IO[bytes] | None,
        group: int,
    ) -> Child:
        """Start the command, a Python module's, as a fork; as a child process where it is not ready (`Launch`)."""
        self.receive()
        if self._is_ready and output is not None:
            self._used = time.monotonic()
            try:
                return self._fork(Request(command, dict(environment), group), output)
            except OSError as error:
                self._fail(f"it did not start a process: {error!r}")
        return spawn(command, environment=environment, output=output, group=group)

    def tick(self) -> None:
        """End it where it was not used for long, or has ended."""
        if self._process is None:
            return
        self.receive()
        for pid, forked in list(self._forked.items()):
            if not forked.is_alive():
                self._forked.pop(pid, None)
        if self._forked:
            self._used = time.monotonic()
        if not self._process.is_alive():
            self.stop()
        elif time.monotonic() - self._used > self._idle:
            log.info("the %s was not used for %.0f s and ends", self._name, self._idle)
            self.stop()

    def stop(self) -> None:
        """End it. Its forks go on."""
        self._is_ready = False
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            self._process.end()
            self._process = None

    @property
    def is_connected(self) -> bool:
        return self._channel is not None

    def receive(self) -> None:
        """Take in what it has sent."""
        while self._channel is not None and select.select([self._channel], [], [], 0)[0]:
            self._take(self._channel)

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        forks = [sys.executable, "-m", "tunewright.supervisor.forks", str(theirs.fileno())]
        try:
            self._process = ChildProcess.start(
                [*forks, f"tunewright: {self._name}", *self._modules],
                record=self._record,
                log_file=self._log,
                environment=child_environment(self._environment),
                lifeline=self._lifeline,
                name=f"the {self._name}",
                descriptors=(theirs.fileno(),),
            )
        except OSError as error:
            ours.close()
            self._fail(f"it did not start: {error}")
            return
        finally:
            theirs.close()
        self._channel = ours
        self._began = time.monotonic()

    def _fork(self, request: Request, output: int | IO[bytes]) -> Forked:
        assert self._channel is not None, "it is ready"
        descriptor = output if isinstance(output, int) else output.fileno()
        socket.send_fds(self._channel, [request.to_json()], [descriptor])
        deadline = time.monotonic() + _ANSWER_SECONDS
        while self._channel is not None:
            if not select.select([self._channel], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"no answer within {_ANSWER_SECONDS:.0f} s")
            message = self._take(self._channel)
            if message is not None and "pid" in message and "exit" not in message:
                forked = self._forked[message["pid"]] = Forked(self, message["pid"])
                return forked
        raise ConnectionError(f"it ended: {last_line(self._log)}")

    def _take(self, channel: socket.socket) -> dict[str, Any] | None:
        """Receive a message. None where it has ended."""
        try:
            data = channel.recv(LARGEST_MESSAGE)
        except ConnectionError:
            data = b""
        if not data:
            channel.close()
            self._channel, self._is_ready = None, False
            return None
        message: dict[str, Any] = json.loads(data)
        if "ready" in message:
            self._is_ready = True
            log.info("the %s is ready after %.1f s", self._name, time.monotonic() - self._began)
        elif "exit" in message and (forked := self._forked.pop(message["pid"], None)) is not None:
            forked.exit_code = message["exit"]
        return message

    def _fail(self, why: str) -> None:
        log.warning("the %s: %s. Processes start without it for %.0f s", self._name, why, _AGAIN_AFTER)
        self._not_before = time.monotonic() + _AGAIN_AFTER
        self.stop()


def fork_server_of_engines(folder: Path, lifeline: int, idle: float) -> ForkServer:
    """One that has imported vLLM's server, for engines on the CPU."""
    environment = engine_environment(CPU)
    return ForkServer(
        folder, lifeline, idle, [VLLM_SERVER], name="engine fork server", environment=environment
    )


class Forked:
    """A fork, as the scheduler sees it."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self.exit_code: int | None = None
        self._server = server
        self._ended_at: float | None = None
        try:
            self._id: ProcessId | None = ProcessId.of(pid)
        except ProcessLookupError:  # it has ended already
            self._id = None

    def is_alive(self) -> bool:
        """Whether it runs, or has just ended and its exit code is still to come."""
        self._server.receive()
        if self.exit_code is not None:
            return False
        if self._id is not None and self._id.is_alive():
            return True
        now = time.monotonic()
        self._ended_at = self._ended_at or now
        return self._server.is_connected and now - self._ended_at < _REPORT_SECONDS

    def wait(self) -> None:
        while self.is_alive():
            time.sleep(0.01)
