"""A full disk under a running service: a clear error, reads still work, nothing is left, and writes work afterwards."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from tests.engine.conftest import Service, processes_of
from tests.kills import find

from disks import fill_up, free, small_disk
from uploads import MIB, started, traces, until, upload

ROWS = b'{"prompt": "a", "completion": "b"}\n'
JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with small_disk(tmp_path_factory.mktemp("disk") / "data", 16) as disk:
        running = started(disk)
        yield running
        running.stop()


@pytest.fixture
def api(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=30) as client:
        yield client


def send(api: httpx.Client, content: bytes = ROWS) -> httpx.Response:
    return api.post("/v1/files", files={"file": ("a.jsonl", content)}, data={"purpose": "fine-tune"})


def create(api: httpx.Client, file: str, number: int) -> httpx.Response:
    """A different body each time: an equal one would be a repeat of the first."""
    body = {"model": "missing", "training_file": file, "metadata": {"n": str(number), "pad": "x" * 500}}
    return api.post(JOBS, json=body)


def error_message(answer: httpx.Response) -> str:
    assert answer.status_code == 507, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "storage_full")
    return str(error["message"])


@pytest.mark.parametrize("megabytes", [20, 9], ids=["while it comes", "while it is kept"])
def test_an_upload_without_room_leaves_nothing(service: Service, api: httpx.Client, megabytes: int) -> None:
    """16 MiB hold neither 20 nor twice 9: the received body and the copy that is kept."""
    there, room = traces(service), free(service.data_dir)
    listed = api.get("/v1/files").json()
    answer = upload(service, megabytes, reads_early=False)
    assert (answer.status, answer.body["error"]["code"]) == (507, "storage_full")
    assert "free some space" in answer.body["error"]["message"].lower()
    assert traces(service) == there
    assert api.get("/v1/files").json() == listed
    until(lambda: free(service.data_dir) > room - MIB / 2)
    assert send(api).status_code == 200


def test_on_a_full_disk_reading_goes_on(service: Service, api: httpx.Client) -> None:
    file = send(api).json()["id"]
    job = create(api, file, -1).json()["id"]
    there = traces(service)
    ballast = fill_up(service.data_dir)
    try:
        assert "Nothing of it is kept" in error_message(send(api))
        for number in range(2000):
            answer = create(api, file, number)
            if answer.status_code != 200:
                break
        assert "nothing was changed" in error_message(answer)
        jobs = api.get(JOBS, params={"limit": 1000}).json()["data"]
        assert len(jobs) == number + 1
        for path in (f"{JOBS}/{job}", f"{JOBS}/{job}/events", f"/v1/files/{file}", "/v1/models", "/health"):
            assert api.get(path).status_code == 200, path
        assert api.get(f"/v1/files/{file}/content").content == ROWS
        assert traces(service) == there
        assert service.process.poll() is None
    finally:
        ballast.unlink()
    assert create(api, file, number).status_code == 200
    assert send(api).status_code == 200
    assert api.post(f"{JOBS}/{job}/cancel").json()["status"] == "cancelled"
    until(lambda: api.get("/ready").json()["components"]["scheduler"]["ready"])


@pytest.mark.parametrize("role", ["api", "scheduler"])
def test_on_a_full_disk_a_service_that_dies_is_started_again(
    service: Service, api: httpx.Client, role: str
) -> None:
    (first,) = find(service, role)
    ballast = fill_up(service.data_dir)
    try:
        os.kill(first, signal.SIGKILL)
        until(lambda: (found := find(service, role)) and found != [first], 20)
        assert api.get("/v1/models").status_code == 200, "it waits for the next api"
        assert service.process.poll() is None
    finally:
        ballast.unlink()
    until(lambda: api.get("/ready").json()["components"]["scheduler"]["ready"])
    assert send(api).status_code == 200


@pytest.mark.parametrize("used", [False, True], ids=["a new folder", "one that was used"])
def test_a_service_that_starts_on_a_full_disk_says_so_in_one_line(tmp_path: Path, used: bool) -> None:
    with small_disk(tmp_path / "data", 8) as disk:
        if used:
            earlier = started(disk)
            earlier.stop()
            until(lambda: processes_of(earlier) == [])
            # Processes that end together may leave SQLite's log, and a log has room for what a start writes.
            with closing(sqlite3.connect(disk / "tunewright.db")) as database:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        fill_up(disk)
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "tunewright",
                "serve",
                "--data-dir",
                str(disk),
                "--base",
                "missing=/nowhere",
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("tunewright serve: ")
    assert "full" in done.stderr or "No space left on device" in done.stderr
