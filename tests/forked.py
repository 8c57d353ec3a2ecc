"""Modules run as the service runs them: as forks of a process that has imported torch and what is built on it, one for
each process of the tests."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

from tunewright.jobs.folder import JobFolder
from tunewright.scheduler.fork_server import ForkServer
from tunewright.supervisor.process import Child


class Process:
    """`python -m module arguments`, with its output after what is in `log`. It ends as `subprocess.Popen` tells."""

    def __init__(
        self, module: str, *arguments: str, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        with log.open("ab") as output:
            self._child: Child = _server().launch(
                [sys.executable, "-m", module, *arguments],
                environment=environment or os.environ,
                output=output,
                group=os.getpgrp(),
            )
        self.pid = self._child.pid

    def poll(self) -> int | None:
        return None if self._child.is_alive() else self._child.exit_code

    def wait(self, timeout: float = 180.0) -> int | None:
        """The exit code. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while self._child.is_alive():
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {self.pid} has not ended within {timeout:.0f} s")
            time.sleep(0.01)
        return self._child.exit_code

    def send_signal(self, number: int) -> None:
        if self._child.is_alive():
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start_trainer(folder: JobFolder, environment: Mapping[str, str] = MappingProxyType({})) -> Process:
    """The trainer of a job, with its output in the job's log. `environment`: variables beside those of the tests."""
    return Process(
        "tunewright.trainer", str(folder.path), log=folder.log_file, environment={**os.environ, **environment}
    )


@cache
def _server() -> ForkServer:
    folder = Path(tempfile.mkdtemp(prefix="forked-"))
    lifeline, held = os.pipe()  # while this process lives, so does the server
    os.set_inheritable(held, False)
    server = ForkServer(folder, lifeline, idle=float("inf"))
    while not server.prepare():
        time.sleep(0.05)
    atexit.register(server.stop)
    return server
