"""The demo's own service: a child process and a temporary folder, both removed at the end."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from tunewright.config import child_environment
from tunewright.supervisor.process import ProcessGroup

STOP_SECONDS = 20.0
LOG_LINES = 20


class DemoError(Exception):
    """The demo could not show its result; the message says why."""


class Interrupts:
    """Raises KeyboardInterrupt for Ctrl-C, SIGTERM or a closed terminal: once, and not while signals are held.

    So a second Ctrl-C does not interrupt the clean-up, and a signal does not come between the start of a process and
    its registration for the clean-up.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._held = self._received = self._raised = False

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._on_signal) for number in self._SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        self._raise()

    def _raise(self) -> None:
        if self._received and not self._held and not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold signals during the block; one that arrives is raised afterwards."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self._raise()

    def ignore(self) -> None:
        """Ignore all further signals."""
        self._held = True


class DemoService:
    """`tunewright serve` with the embedded base and default settings; settings in the environment are not passed on.

    It has a lifeline to the demo, as the service's own children have to the service: if the demo is killed, the
    service and all its processes end too.
    """

    def __init__(self, port: int | None, interrupts: Interrupts) -> None:
        self.port = port or 0
        self._interrupts = interrupts
        self._folder: Path | None = None
        self._group: ProcessGroup | None = None
        self._lifeline: tuple[int, int] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log_file(self) -> Path:
        assert self._folder is not None, "`start` was called"
        return self._folder / "service.log"

    def start(self) -> None:
        """Raises DemoError where the port is taken."""
        self.port = _free_port(self.port)
        atexit.register(self.stop)  # for an interrupt just before the caller's own clean-up
        with self._interrupts.held():
            self._folder = Path(tempfile.mkdtemp(prefix="tunewright-demo-"))
            self._lifeline = os.pipe()
            with self.log_file.open("wb") as log:
                self._group = ProcessGroup.start(
                    serve_command(self.port, self._folder / "data"),
                    record_path=self._folder / "service.json",
                    environment=child_environment(),
                    lifeline=self._lifeline[0],
                    output=log,
                    title="tunewright: lifeline of the demo",
                )

    def check(self) -> None:
        """Raises DemoError when the service has ended."""
        if self._group is None or not self._group.is_alive():
            code = self._group.exit_code if self._group else None
            raise DemoError(f"the service ended by itself, with exit code {code}")

    def log_tail(self) -> list[str]:
        """The last lines of the service's log."""
        if self._folder is None or not self.log_file.exists():
            return []
        return self.log_file.read_text(errors="replace").splitlines()[-LOG_LINES:]

    def stop(self) -> None:
        """Stop the service: SIGTERM, SIGKILL after 20 seconds; then remove the folder. Does nothing if not started."""
        self._interrupts.ignore()
        if self._group is not None:
            self._group.stop(STOP_SECONDS)
        for descriptor in self._lifeline or ():
            os.close(descriptor)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._group = self._folder = self._lifeline = None
        atexit.unregister(self.stop)


def serve_command(port: int, data: Path) -> list[str]:
    return [sys.executable, "-m", "tunewright", "serve", "--port", str(port), "--data-dir", str(data)]


def _free_port(wanted: int) -> int:
    """`wanted`, or a free port where it is 0. Raises DemoError where it is in use.

    Another program may still take it before the service does, which then fails to start.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise DemoError(f"port {wanted} cannot be used: {error.strerror}") from error
        port: int = probe.getsockname()[1]
        return port
