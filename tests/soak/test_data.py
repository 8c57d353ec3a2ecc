"""A file of 5 GB, made on the spot: uploaded, checked, tokenized, trained for 50 steps; memory does not grow.

`TUNEWRIGHT_SOAK_BYTES` is its size. Another file has a twentieth of it, at least 10 MB: the trainer needs as
much memory for both.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from tests.engine.conftest import Service, wait_until
from tests.kills import find
from tests.without_vllm import BASE, start_without_vllm, wait_engine
from tunewright_client import Tunewright

BYTES = int(os.environ.get("TUNEWRIGHT_SOAK_BYTES", 5 * 10**9))
MIB = 2**20
STEPS = 50
MOST = 500 * MIB
"""Of the api, and of the scheduler."""
SPREAD = 100 * MIB
"""By which two trainers may differ."""
pytestmark = [pytest.mark.soak, pytest.mark.timeout(6 * 3600)]


def write_rows(path: Path, size: int) -> int:
    """Text rows of 4 kB, all different. Returns how many."""
    rows = 0
    with path.open("w") as file:
        while file.tell() < size:
            words = " ".join(f"the number {rows} and then {rows + n}" for n in range(120))
            file.write(json.dumps({"prompt": f"Row {rows}:", "completion": f" {words}"[:4000]}) + "\n")
            rows += 1
    return rows


def field(pid: int, name: str) -> int:
    """Bytes of a field of /proc/PID/status; 0 where the process has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    _, found, rest = text.partition(f"\n{name}:")
    return int(rest.split()[0]) * 1024 if found else 0


class Watch(threading.Thread):
    """The peaks of the memory of a service's processes, by role."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self._service = service
        self._done = threading.Event()
        self.peaks = dict.fromkeys(("api", "scheduler", "trainer"), 0)
        self.own = 0
        """Of the trainer, without what it has mapped of files, which the system takes back where it needs room."""

    def run(self) -> None:
        while not self._done.wait(1.0):
            for role in self.peaks:
                for pid in find(self._service, role):
                    self.peaks[role] = max(self.peaks[role], field(pid, "VmHWM"))
                    if role == "trainer":
                        self.own = max(self.own, field(pid, "RssAnon"))

    def stop(self) -> None:
        self._done.set()
        self.join()


def trained(service: Service, client: Tunewright, path: Path, size: int) -> Watch:
    """Upload a new file of that size, train on it for 50 steps, and cancel the job. Returns the memory."""
    rows = write_rows(path, size)
    watch = Watch(service)
    watch.start()
    began = time.monotonic()
    file = client.files.upload(path)
    uploaded = time.monotonic()
    path.unlink()
    # Progress is told a thousand times in a run: with large batches often enough to see 50 steps soon.
    tuning = {"type": "lora", "batch_size": 32, "n_epochs": 1, "max_length": 128}
    job = client.jobs.create(model=BASE, training_file=file.id, tuning=tuning)

    def told(text: str) -> bool:
        events = list(client.jobs.events(job.id, limit=100).data)
        failed = client.jobs.retrieve(job.id).error
        assert not (failed and failed.message), failed
        return any(text in event.message for event in events)

    wait_until(lambda: told("Files validated"), 3600, "the check")
    checked = time.monotonic()
    wait_until(lambda: told("Training data: "), 5 * 3600, "the tokens")
    tokenized = time.monotonic()

    def steps() -> int:
        progress = client.jobs.retrieve(job.id).progress
        return progress.step if progress else 0

    wait_until(lambda: steps() >= STEPS, 3600, f"{STEPS} steps")
    finished = time.monotonic()
    client.jobs.cancel(job.id)
    watch.stop()
    seconds = {"uploaded": uploaded - began, "checked": checked - uploaded, "tokenized": tokenized - checked}
    print(
        f"\n{size / 1e6:.0f} MB, {rows} rows: "
        + ", ".join(f"{what} in {took:.0f} s ({rows / took:.0f} rows/s)" for what, took in seconds.items())
        + f", {STEPS} steps in {finished - tokenized:.0f} s; peaks: "
        + ", ".join(f"{role} {peak / MIB:.0f} MiB" for role, peak in watch.peaks.items())
        + f" ({watch.own / MIB:.0f} MiB of its own)"
    )
    return watch


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    service = start_without_vllm(
        tmp_path / "data", "--max-upload", str(BYTES + MIB), "--max-token-cache-size", str(4 * BYTES)
    )
    try:
        wait_engine(service)
        with service.client(timeout=3600) as client:
            small = trained(service, client, tmp_path / "small.jsonl", max(BYTES // 20, 10**7))
            large = trained(service, client, tmp_path / "large.jsonl", BYTES)
    finally:
        service.stop()
    assert max(large.peaks["api"], large.peaks["scheduler"]) < MOST
    assert large.own - small.own < SPREAD
