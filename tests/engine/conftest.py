"""One real service for the whole session: the embedded base, and the same base without its chat template."""

from __future__ import annotations

import json
import os
import shutil
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

from tunewright.config import EMBEDDED_BASE, embedded_base_path
from tunewright.store.store import Store
from tunewright_client import Job, Tunewright

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

    def client(self, **options: Any) -> Tunewright:
        return Tunewright(base_url=self.url, **options)

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
            env={**os.environ, **(environment or {})},
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


@pytest.fixture(scope="session")
def plain_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base without a chat template."""
    folder = tmp_path_factory.mktemp("bases") / "plain"
    shutil.copytree(embedded_base_path(), folder)
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, plain_base: Path) -> Iterator[Service]:
    running = start_service(
        tmp_path_factory.mktemp("service") / "data",
        "--base", f"{EMBEDDED_BASE}={embedded_base_path()}",
        "--base", f"plain={plain_base}",
        "--parity", "off",  # other tests need not wait for the parity check; test_parity and the demo have it on
    )  # fmt: skip
    try:
        wait_ready(running)
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def checking_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the base that `checking_service` serves: a test may change them under the engine, which read them
    before."""
    return Path(shutil.copytree(embedded_base_path(), tmp_path_factory.mktemp("bases") / "checking"))


@pytest.fixture(scope="session")
def checking_service(tmp_path_factory: pytest.TempPathFactory, checking_base: Path) -> Iterator[Service]:
    """With the parity check on, and a model that can be deployed: `other`."""
    root = tmp_path_factory.mktemp("checking")
    shutil.copytree(embedded_base_path(), root / "other")
    running = start_service(
        root / "data",
        "--base", f"{EMBEDDED_BASE}={checking_base}",
        "--device", "cpu",
        "--kv-cache-memory", "128MiB",
        "--deployable", f"other={root / 'other'}",
    )  # fmt: skip
    try:
        wait_ready(running)
        yield running
    finally:
        running.stop()


@pytest.fixture
def client(service: Service) -> Iterator[Tunewright]:
    with service.client(timeout=120) as opened:
        yield opened


@pytest.fixture(scope="session")
def demo_files(service: Service) -> tuple[str, str]:
    with service.client() as client:
        return (
            client.files.upload(DEMO / "train.jsonl").id,
            client.files.upload(DEMO / "validation.jsonl").id,
        )


@pytest.fixture(scope="session")
def small_file(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    """32 rows of the demo: a job on it takes seconds."""
    path = tmp_path_factory.mktemp("rows") / "small.jsonl"
    path.write_text("".join((DEMO / "train.jsonl").open().readlines()[:32]))
    with service.client() as client:
        return client.files.upload(path).id


@pytest.fixture(scope="session")
def pirate(service: Service, demo_files: tuple[str, str]) -> Job:
    """A finished LoRA job that made the base talk like a pirate."""
    with service.client() as client:
        job = client.jobs.create(
            model=EMBEDDED_BASE,
            training_file=demo_files[0],
            validation_file=demo_files[1],
            suffix="pirate",
            seed=7,
            metadata={"team": "tests"},
            tuning=FAST,
        )
        return client.jobs.wait(job.id, timeout=240)


@pytest.fixture
def ask(client: Tunewright) -> Callable[[str, str], str]:
    def answer(model: str, question: str) -> str:
        completion = client.chat.create(
            model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=48
        )
        return str(completion.text)

    return answer


def wait_until(condition: Callable[[], Any], timeout: float = 60, what: str = "") -> Any:
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout} s: {what or condition}"
        time.sleep(0.1)
