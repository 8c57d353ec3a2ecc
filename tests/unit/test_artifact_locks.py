"""No process removes an artifact between its publication and its listing; a killed process holds no lock."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapters import safetensors, zeros
from rows import create_job, resolved
from tunewright.api.http.context import ServiceContext
from tunewright.api.models.artifacts import remove
from tunewright.config import Settings
from tunewright.jobs.folder import JobFolder
from tunewright.kinds.fine_tuning.publishing import publish_products
from tunewright.kinds.kind import Service
from tunewright.registry.bases import BaseInfo
from tunewright.registry.content import adapter_sha256
from tunewright.registry.workspace import Workspace
from tunewright.store.states import JobState
from tunewright.store.store import Store
from tunewright.trainer.spec import TrainingResult

OTHER = "c" * 64
BASE = BaseInfo("tiny", Path(), "b" * 64, 64, None, None)


@contextmanager
def process(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process that has printed its first line; it is killed at the end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == "ready\n"
            yield started
        finally:
            started.kill()


def weights(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}')
    (folder / "adapter_model.safetensors").write_bytes(safetensors({"t": zeros(1)}))
    return folder


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


KEEP = """
import sys, time
from pathlib import Path
from tunewright.registry.workspace import Workspace
with Workspace(Path(sys.argv[1])).artifacts.keeping(sys.argv[2]):
    print("ready", flush=True)
    time.sleep(60)
"""
REMOVE = """
import sys, time
from pathlib import Path
from tunewright.registry.workspace import Workspace
def asked():
    print("ready", flush=True)
    time.sleep(60)
Workspace(Path(sys.argv[1])).artifacts.remove(sys.argv[2], asked)
"""


def test_what_another_process_keeps_is_removed_when_that_is_killed(
    data: Workspace, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    sha256 = data.artifacts.put(weights(tmp_path / "a"))
    with process(KEEP, data.path, sha256) as keeper:
        removing = pool.submit(data.artifacts.remove, sha256, lambda: False)
        time.sleep(0.3)
        assert not removing.done()
        assert data.artifacts.local(sha256).is_dir()
        keeper.send_signal(signal.SIGKILL)
        assert removing.result(timeout=20) is True
    assert not data.artifacts.local(sha256).exists()


def test_a_killed_remover_leaves_the_artifact_and_no_lock(
    data: Workspace, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    def keep() -> bool:
        with ExitStack() as kept:
            return data.artifacts.local(data.artifacts.put(tmp_path / "a", kept)).is_dir()

    sha256 = data.artifacts.put(weights(tmp_path / "a"))
    with process(REMOVE, data.path, sha256) as remover:
        keeping = pool.submit(keep)
        time.sleep(0.3)
        assert not keeping.done(), "what is being removed is not published again meanwhile"
        remover.send_signal(signal.SIGKILL)
        assert keeping.result(timeout=20)
    assert data.artifacts.local(sha256).is_dir()


def test_many_keep_at_once_and_others_do_not_wait(data: Workspace, tmp_path: Path) -> None:
    sha256 = data.artifacts.put(weights(tmp_path / "a"))
    keeping = data.artifacts.keeping
    with keeping(OTHER), keeping(OTHER), keeping("d" * 64):
        assert data.artifacts.remove(sha256, lambda: False)


def test_a_child_that_inherited_a_lock_does_not_keep_it(data: Workspace, pool: ThreadPoolExecutor) -> None:
    """LitServe forks workers; a descriptor that one of them inherits must not block removals for ever."""
    sha256 = OTHER
    data.artifacts.local(sha256).mkdir()
    with data.artifacts.keeping(sha256):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        assert pool.submit(data.artifacts.remove, sha256, lambda: False).result(timeout=20)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_what_is_used_stays(data: Workspace, tmp_path: Path) -> None:
    sha256 = data.artifacts.put(weights(tmp_path / "a"))
    assert not data.artifacts.remove(sha256, lambda: {sha256})
    assert data.artifacts.local(sha256).is_dir()


def test_a_publication_and_a_removal_do_not_cross(
    store: Store, data: Workspace, tmp_path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler finds the existing artifact and is about to list it, when the API deletes the model that had it."""
    folder = weights(tmp_path / "product")
    sha256 = adapter_sha256(folder)
    first = publish(store, data, folder, "first")
    at_listing, go = threading.Event(), threading.Event()
    real = store.models.publish

    def slow(*arguments: Any, **values: Any) -> bool:
        at_listing.set()
        assert go.wait(20)
        return real(*arguments, **values)

    monkeypatch.setattr(type(store.models), "publish", lambda _, *a, **k: slow(*a, **k))
    publishing = pool.submit(publish, store, data, folder, "second")
    assert at_listing.wait(20)
    deleting = pool.submit(delete, store, data, first)
    time.sleep(0.2)
    assert data.artifacts.local(sha256).is_dir()
    go.set()
    second = publishing.result(timeout=20)
    deleting.result(timeout=20)
    assert store.models.get(first) is None
    assert store.models.get(second) is not None
    assert data.artifacts.local(sha256).is_dir()


HAMMER = """
import sys
from pathlib import Path
from tunewright.registry.workspace import Workspace
from tunewright.store.store import Store
from tunewright.trainer.spec import TrainingResult
data, store = Workspace(Path(sys.argv[1])), Store.open(sys.argv[2])
print("ready", flush=True)
while True:
    data.artifacts.remove(sys.argv[3], lambda: store.models.weights_in_use(sys.argv[3]))
"""


def test_what_is_listed_has_its_files_whoever_removes(
    store: Store, data: Workspace, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    """Two publishers list and delete the same weights over and over, as two processes remove what is not used."""
    folder = weights(tmp_path / "product")
    sha256, url = adapter_sha256(folder), store.database.url
    rounds = 20

    def go_on(index: int) -> int:
        whole = 0
        for number in range(rounds):
            name = publish(store, data, folder, f"{index}-{number}")
            time.sleep(0.001)
            whole += adapter_sha256(data.artifacts.local(sha256)) == sha256
            delete(store, data, name)
        return whole

    with process(HAMMER, data.path, url, sha256), process(HAMMER, data.path, url, sha256):
        publishers = [pool.submit(go_on, index) for index in range(2)]
        assert [publisher.result() for publisher in publishers] == [rounds, rounds]
    assert store.models.list()[0] == []
    assert data.artifacts.hashes() == set()


def publish(store: Store, data: Workspace, folder: Path, name: str) -> str:
    """Publishes a trainer's product as the scheduler does; returns the model's name."""
    job = create_job(store, state=JobState.RUNNING, resolved=resolved(), fingerprint=name)
    run = JobFolder(data.job(job.id))
    run.adapter.mkdir(parents=True)
    for file in folder.iterdir():
        os.link(file, run.adapter / file.name)
    service = Service(Settings(base=["tiny=/m"], parity="off"), store, data, on_gpu=False)
    publish_products(
        service,
        job,
        BASE,
        run,
        TrainingResult(status="succeeded"),
    )
    ended = store.jobs.get(job.id)
    assert ended is not None
    assert ended.model is not None
    return ended.model


def delete(store: Store, data: Workspace, name: str) -> None:
    """Deletes the model as the route does."""
    model = store.models.get(name)
    assert model is not None
    asyncio.run(remove(ServiceContext(Settings(), store, data, control), model))


async def control(operation: dict[str, Any]) -> dict[str, Any]:
    return {"state": "unloaded"}
