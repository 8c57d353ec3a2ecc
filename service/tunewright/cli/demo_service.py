"""The demo's own service: a child process and a temporary folder, of which nothing is left in the end."""

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
    """Says why the demo has not shown what it is there to show."""


class Interrupts:
    """Ctrl-C, a SIGTERM or a closed terminal raise KeyboardInterrupt: once, and not while they are held back.

    So cleaning up is not cut short by a second Ctrl-C, and nothing is started that is not yet known to it.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._held = self._came = self._raised = False

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._take) for number in self._SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        self._raise()

    def _raise(self) -> None:
        if self._came and not self._held and not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """What comes meanwhile is raised afterwards."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self._raise()

    def ignore(self) -> None:
        """From now on nothing is raised."""
        self._held = True


class DemoService:
    """`tunewright serve` on the embedded base, with defaults only: this environment's settings are not its.

    It hangs on a lifeline of the demo's, as the service's own children do on the service's: should the demo
    be killed, the service and all below it end too.
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
        assert self._folder is not None, "started first"
        return self._folder / "service.log"

    def start(self) -> None:
        """Raises DemoError where the port is taken."""
        self.port = _free_port(self.port)
        atexit.register(self.stop)  # for an interrupt that comes just before the caller's own clean-up
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
        """The last lines that the service wrote."""
        if self._folder is None or not self.log_file.exists():
            return []
        return self.log_file.read_text(errors="replace").splitlines()[-LOG_LINES:]

    def stop(self) -> None:
        """SIGTERM, 20 seconds, SIGKILL; then the folder goes. Does not mind where it was never started."""
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
    """`wanted`, or any where it is 0. Another may still take it first: then the service says so."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise DemoError(f"port {wanted} cannot be used: {error.strerror}") from error
        port: int = probe.getsockname()[1]
        return port
