"""Services with a real vLLM, for tests that start their own and for the folders of those that share one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tunewright.config import embedded_base_path
from tunewright.store.store import Store
from tunewright_client import Tunewright

DEMO = embedded_base_path().parent / "demo"
FAST = {"type": "lora", "learning_rate": 3e-3, "n_epochs": 2, "batch_size": 16, "rank": 16}
"""Learns the demo's voice in about half a minute on two cores."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/engine/" in str(item.path):
            item.add_marker(pytest.mark.engine)


@dataclass
class Service:
    """A running `tunewright serve`."""

    url: str
    data_dir: Path
    process: subprocess.Popen[bytes]
    log: Path
    arguments: list[str]
    environment: dict[str, str] | None = None
    """What it was given beside the environment of the tests."""
    ca_file: Path | None = None
    """Whom its clients trust, where it has TLS."""

    def client(self, **options: Any) -> Tunewright:
        return Tunewright(base_url=self.url, ca_file=self.ca_file, **options)

    def stop(self) -> float:
        """Send SIGTERM; returns the seconds until the process had ended."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        return time.monotonic() - began


def start_service(
    data_dir: Path,
    *arguments: str,
    port: int | None = None,
    environment: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> Service:
    port = port or free_port()
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    log = data_dir.parent / f"{data_dir.name}.log"
    command = [
        sys.executable, "-P", "-m", "tunewright",  # as the installed command: no modules of the working directory
        "serve", "--port", str(port), "--data-dir", str(data_dir),
    ]  # fmt: skip
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            # A standby takes seconds of processor time, which only tests of kills need.
            env={"TUNEWRIGHT_API_STANDBY": "false", **os.environ, **(environment or {})},
            cwd=cwd,
        )
    return Service(f"http://127.0.0.1:{port}", data_dir, process, log, list(arguments), environment)


def wait_ready(service: Service, timeout: float = 420) -> None:
    with service.client() as client:
        try:
            client.wait_ready(timeout=timeout)
        except Exception:
            print(service.log.read_text()[-3000:])
            for log in service.data_dir.glob("engines/*/engine.log"):
                print(log, log.read_text()[-3000:])
            raise


def engine_runs(service: Service) -> dict[str, int]:
    """How often each engine was started."""
    store = Store.open(f"sqlite:///{service.data_dir / 'tunewright.db'}")
    try:
        return {engine.name: engine.run for engine in store.engines.list()}
    finally:
        store.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes_of(service: Service) -> list[str]:
    """Command lines of every living process that carries the service's data folder in its environment or title."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            environment = (folder / "environ").read_bytes()
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(service.data_dir).encode() in environment or str(service.data_dir) in line:
            found.append(f"{folder.name} {line}")
    return found


@pytest.fixture
def client(service: Service) -> Iterator[Tunewright]:
    with service.client(timeout=120) as opened:
        yield opened


def wait_until(condition: Callable[[], Any], timeout: float = 60, what: str = "") -> Any:
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout} s: {what or condition}"
        time.sleep(0.1)
