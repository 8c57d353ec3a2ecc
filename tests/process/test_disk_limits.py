"""The scheduler's process enforces the limits: a file that is too old is removed, and stopping is quick."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rows import FILE
from tunewright.config import Settings, child_environment
from tunewright.registry.workspace import Workspace
from tunewright.store.store import Store
from tunewright.supervisor.process import ProcessGroup


@pytest.fixture
def scheduler(store: Store, data: Workspace, tmp_path: Path) -> Iterator[ProcessGroup]:
    """A service on a base that does not exist, so that no engine starts."""
    settings = Settings(data_dir=data.path, base=["none=/none"], device="cpu", keep_files_days=1)
    environment = child_environment(
        {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}, with_settings=settings
    )
    data.file(FILE["id"]).write_bytes(b"x")
    reading, writing = os.pipe()
    with (tmp_path / "log").open("wb") as output:
        group = ProcessGroup.start(
            [sys.executable, "-m", "tunewright.scheduler"],
            record_path=tmp_path / "scheduler.json",
            environment=environment,
            lifeline=reading,
            output=output,
        )
    try:
        yield group
    finally:
        group.end()
        os.close(reading)
        os.close(writing)


def test_the_scheduler_removes_what_is_too_old(
    store: Store, data: Workspace, scheduler: ProcessGroup, tmp_path: Path
) -> None:
    deadline = time.monotonic() + 60
    while store.files.get(FILE["id"]) or data.file(FILE["id"]).exists():
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.05)
    assert f"removed file {FILE['id']} (train.jsonl)" in (tmp_path / "log").read_text()
    os.kill(scheduler.pid, signal.SIGTERM)
    scheduler.wait(20)
    assert scheduler.exit_code == 0, (tmp_path / "log").read_text()
