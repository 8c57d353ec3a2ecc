"""Files in the folder from which the service was started are never run, whatever package they are named as."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.conftest import DEMO, Service
from tests.without_vllm import BASE, start_without_vllm, wait_engine

from lora import random_lora
from tunewright.config import JobOptions, child_environment, embedded_base_path
from tunewright.evaluate.folder import BaseSpec, ParitySpec
from tunewright.registry.workspace import Workspace
from tunewright.scheduler.devices import Devices
from tunewright.scheduler.fork_server import ForkServer
from tunewright.scheduler.references import References
from tunewright.store.store import Store

NAMES = ("tunewright", "torch", "vllm", "numpy", "transformers", "litserve", "json", "typing")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with files of these names, each of which leaves a line in `ran` when it is run."""
    found = tmp_path_factory.mktemp("elsewhere")
    for name in NAMES:
        (found / f"{name}.py").write_text(
            f"import sys\nopen({str(found / 'ran')!r}, 'a').write(f'{{__name__}} {{sys.orig_argv}}\\n')\n"
            "raise ImportError('a file of the working directory')\n"
        )
    return found


@pytest.fixture(autouse=True)
def nothing_of_it_runs(folder: Path) -> Iterator[None]:
    ran = folder / "ran"
    ran.unlink(missing_ok=True)
    yield
    assert not ran.exists(), ran.read_text()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Service]:
    running = start_without_vllm(tmp_path_factory.mktemp("there") / "data", cwd=folder)
    try:
        yield running
    finally:
        running.stop()


def test_the_api_the_scheduler_the_worker_and_the_engine_start(service: Service) -> None:
    wait_engine(service)


def test_an_upload_is_read(service: Service, tmp_path: Path) -> None:
    wait_engine(service)
    adapter = random_lora(embedded_base_path(), tmp_path / "adapter", strength=0.1, seed=1)
    with service.client(timeout=60) as client:
        assert client.adapters.register(adapter, base=BASE, suffix="a").model.startswith(f"ft:{BASE}:a")


@pytest.mark.soak
def test_a_job_is_planned_and_trains(service: Service, tmp_path: Path) -> None:
    wait_engine(service)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join((DEMO / "train.jsonl").read_text().splitlines(keepends=True)[:64]))
    with service.client(timeout=120) as client:
        file = client.files.upload(rows).id
        assert client.jobs.plan(model=BASE, training_file=file).tokens
        tuning = {"type": "lora", "n_epochs": 1, "batch_size": 16}
        job = client.jobs.create(model=BASE, training_file=file, tuning=tuning)
        assert job.wait(timeout=240).status == "succeeded"


def test_the_reference_of_a_parity_check_measures(
    folder: Path, store: Store, data: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    reading, writing = os.pipe()
    try:
        references = References(
            JobOptions(), data, reading, Devices(["cpu"], store), ForkServer(data.run, reading, 60)
        )
        base = BaseSpec(path=str(embedded_base_path()), context=256)
        adapter = random_lora(embedded_base_path(), tmp_path / "adapter", strength=0.1, seed=1)
        spec = ParitySpec(
            base=base,
            adapter_id="adapter-1",
            adapter=str(adapter),
            rows_from="probes",
            rows=1,
        )
        references.start([spec])
        deadline = time.monotonic() + 120
        while not references.is_measured("adapter-1"):
            assert references.watch() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        os.close(writing)
        os.close(reading)


def test_whatever_is_started_with_the_environment_of_a_child_imports_nothing_of_it(folder: Path) -> None:
    """`tunewright demo` and vLLM's own processes, which inherit it, among them."""
    command = [sys.executable, "-m", "tunewright", "--help"]
    within = [sys.executable, "-c", f"import subprocess; subprocess.run({command!r}, check=True)"]
    for one in (command, within):
        subprocess.run(one, cwd=folder, env=child_environment(), check=True, capture_output=True, timeout=60)
