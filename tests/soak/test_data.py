"""A file of 5 GB, made on the spot: uploaded, checked, cleaned, planned, tokenized and trained for 50 steps; memory
does not grow with it.

`TUNEWRIGHT_SOAK_BYTES` is its size. Another file has a twentieth of it, at least 10 MB: the trainer needs as much
memory for both. The folder of the test (pytest's `--basetemp`) needs three times the size.
"""

from __future__ import annotations

import json
import os
import shutil
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
COPIES = 100
"""Of so many rows the last is a copy of the first, which the cleaning removes."""
pytestmark = [pytest.mark.soak, pytest.mark.timeout(8 * 3600)]


def write_rows(path: Path, size: int) -> tuple[int, int]:
    """Text rows of 4 kB, one in a hundred a copy. Returns how many, and how many copies."""
    rows = copies = 0
    with path.open("w") as file:
        while file.tell() < size:
            is_copy = rows % COPIES == COPIES - 1
            number = rows - COPIES + 1 if is_copy else rows
            words = " ".join(f"the number {number} and then {number + n}" for n in range(120))
            file.write(json.dumps({"prompt": f"Row {number}:", "completion": f" {words}"[:4000]}) + "\n")
            rows += 1
            copies += is_copy
    return rows, copies


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
        self.peaks = dict.fromkeys(("api", "scheduler", "cleaner", "trainer"), 0)
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
    """Upload a new file of that size, clean it, plan with it, train on it for 50 steps, and cancel the job. Returns the
    memory."""
    rows, copies = write_rows(path, size)
    watch = Watch(service)
    watch.start()
    clock = [time.monotonic()]
    took: dict[str, float] = {}

    def done(what: str) -> None:
        clock.append(time.monotonic())
        took[what] = clock[-1] - clock[-2]
        print(f"{size / 1e6:.0f} MB: {what} in {took[what]:.0f} s", flush=True)

    source = client.files.upload(path)
    done("uploaded")
    path.unlink()
    wait_until(lambda: client.files.retrieve(source.id).status != "uploaded", 3600, "the check")
    checked = client.files.retrieve(source.id)
    assert checked.status == "processed", checked
    done("checked")
    cleaning = client.cleanings.create(source.id, ["duplicates", {"type": "length", "min_answer": 2}])
    cleaned = cleaning.wait(timeout=4 * 3600)
    assert cleaned.report is not None
    assert cleaned.cleaned_file is not None
    assert [step.removed for step in cleaned.report.steps if step.step == "duplicates"] == [copies]
    done("cleaned")
    client.files.delete(source.id)  # room for the tokens
    # Progress is told a thousand times in a run: with large batches often enough to see 50 steps soon.
    tuning = {"type": "lora", "batch_size": 32, "n_epochs": 1, "max_length": 128}
    asked = {"model": BASE, "training_file": cleaned.cleaned_file, "tuning": tuning}
    plan = client.jobs.plan(**asked)
    assert plan.rows == rows - copies
    assert plan.fits
    done("planned" if plan.counted_rows is None else f"planned from {plan.counted_rows} rows")
    job = client.jobs.create(**asked)

    def told(text: str) -> bool:
        events = list(client.jobs.events(job.id, limit=100).data)
        failed = client.jobs.retrieve(job.id).error
        assert not (failed and failed.message), failed
        return any(text in event.message for event in events)

    wait_until(lambda: told("Files validated"), 3600, "the check")
    done("validated")
    wait_until(lambda: told("Training data: "), 5 * 3600, "the tokens")
    done("tokenized")

    def steps() -> int:
        progress = client.jobs.retrieve(job.id).progress
        return progress.step if progress else 0

    wait_until(lambda: steps() >= STEPS, 3600, f"{STEPS} steps")
    done(f"{STEPS} steps")
    client.jobs.cancel(job.id)
    again = client.jobs.plan(**asked)
    assert again.counted_rows is None, "the job has tokenized all rows"
    assert again.tokens == pytest.approx(plan.tokens, rel=0.05)
    done("planned again")
    watch.stop()
    print(
        f"{size / 1e6:.0f} MB, {rows} rows: "
        + ", ".join(f"{what} {rows / seconds:.0f} rows/s" for what, seconds in took.items())
        + "; peaks: "
        + ", ".join(f"{role} {peak / MIB:.0f} MiB" for role, peak in watch.peaks.items())
        + f" ({watch.own / MIB:.0f} MiB of its own)",
        flush=True,
    )
    return watch


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert free > 3 * BYTES, f"{free / 1e9:.0f} GB are free: lower TUNEWRIGHT_SOAK_BYTES, or give --basetemp"
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
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
    assert max(large.peaks["api"], large.peaks["scheduler"]) < MOST
    assert large.own - small.own < SPREAD
