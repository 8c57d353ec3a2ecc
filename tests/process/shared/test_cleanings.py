"""Cleanings by the whole service without vLLM: killed ones, a full disk, and a job that trains on the result."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.engine.conftest import DEMO, FAST, Service, wait_until
from tests.without_vllm import BASE

from disks import small_disk
from kills import tree
from tunewright.cleaner.folder import Cleaned, CleaningSpec
from tunewright.jobs.folder import JobFolder
from tunewright.rows.cleaning.steps.html import HtmlOptions
from tunewright_client import BadRequestError, Cleaning, JobCancelledError, JobFailedError, Tunewright

HTML = "<p>{}</p>"


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def many(count: int, mark: str = "") -> bytes:
    """Rows of which every third is a copy of an earlier one."""
    return lines(
        [
            {
                "prompt": f"{mark}{number if number % 3 else number // 2} + 1 =",
                "completion": HTML.format("more"),
            }
            for number in range(count)
        ]
    )


def running(service: Service, cleaning: Cleaning) -> int:
    """The process of a cleaning, once it has written rows."""
    work = service.data_dir / "jobs" / cleaning.id / "work"
    wait_until(lambda: any(path.exists() and path.stat().st_size for path in work.glob(".*")), 60, "rows")
    title = f"tunewright: cleaning {cleaning.id}"
    (pid,) = (pid for pid, (_, line) in tree(service.process.pid).items() if line.startswith(title))
    return pid


def test_killed_in_the_middle_it_goes_on_and_gives_the_same_file(
    service: Service, client: Tunewright
) -> None:
    file = client.files.upload(many(15_000), filename="many.jsonl").id
    steps: list[Any] = ["html", "duplicates", {"type": "balance", "by": "answer"}]
    undisturbed = client.cleanings.create(file, steps).wait(timeout=240)
    disturbed = client.cleanings.create(file, steps, metadata={"n": "2"})
    os.kill(running(service, disturbed), signal.SIGKILL)
    disturbed = disturbed.wait(timeout=240)
    first, second = (client.files.retrieve(one.cleaned_file or "") for one in (undisturbed, disturbed))
    content = client.files.content(first.id)
    assert client.files.content(second.id) == content
    assert hashlib.sha256(content).hexdigest() == second.model_dump()["sha256"]
    assert disturbed.report == undisturbed.report
    told = [event.message for event in client.cleanings.events(disturbed.id)]
    assert "The cleaner ended with signal 9; starting it again from its last saved row" in told


def test_its_file_is_kept_until_it_is_cancelled(service: Service, client: Tunewright) -> None:
    before = {file.id for file in client.files.list()}
    file = client.files.upload(many(15_000, "x"), filename="many.jsonl").id
    cleaning = client.cleanings.create(file, ["html", "near_duplicates"])
    running(service, cleaning)
    with pytest.raises(BadRequestError, match=cleaning.id):
        client.files.delete(file)
    cleaning.cancel()
    with pytest.raises(JobCancelledError):
        cleaning.wait(timeout=240)
    assert {file.id for file in client.files.list()} == before | {file}
    wait_until(lambda: not (service.data_dir / "jobs" / cleaning.id / "work").exists(), 30, "no work")
    assert client.files.delete(file).deleted


def test_one_that_removes_every_row_says_which_step_did(client: Tunewright) -> None:
    file = client.files.upload(many(10, "y"), filename="few.jsonl").id
    with pytest.raises(JobFailedError, match="no row is left of 10") as failed:
        client.cleanings.create(file, ["html", {"type": "length", "min_answer": 99}]).wait(timeout=240)
    assert failed.value.code == "nothing_left"
    cleaning = client.cleanings.retrieve(failed.value.job.id)
    assert cleaning.cleaned_file is None
    assert cleaning.report is not None
    assert [(step.step, step.removed) for step in cleaning.report.steps] == [("html", 0), ("length", 10)]


def test_on_a_full_disk_it_fails_and_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "train.jsonl"
    source.write_bytes(many(40_000))
    with small_disk(tmp_path / "disk", 1) as disk:
        folder = JobFolder(disk / "clean-1")
        steps = [HtmlOptions()]
        folder.write_spec(
            CleaningSpec(job_id="clean-1", file=str(source), rows=40_000, steps=steps, memory_bytes=2**31)
        )
        done = subprocess.run([sys.executable, "-m", "tunewright.cleaner", str(folder.path)], timeout=120)
        assert done.returncode == 0
        result = folder.read_result(Cleaned)
        assert result is not None
        assert (result.status, result.error_code) == ("failed", "disk_full")
        assert "Free some space there" in (result.error_message or "")
        assert not folder.work.exists()


def test_a_job_trains_on_the_cleaned_file(client: Tunewright) -> None:
    rows = [json.loads(line) for line in (DEMO / "train.jsonl").read_text().splitlines()[:24]]
    marked = json.loads(json.dumps(rows))
    for row in marked:
        row["messages"][0]["content"] = HTML.format(row["messages"][0]["content"])
    held_out = client.files.upload(lines(rows[:4]), filename="valid.jsonl")
    source = client.files.upload(lines([*marked, *marked[8:]]), filename="train.jsonl")
    cleaning = client.cleanings.create(
        source.id, ["html", "duplicates", {"type": "leaks", "against": held_out.id}]
    ).wait(timeout=120)
    assert cleaning.report is not None
    assert {step.step: (step.removed, step.changed) for step in cleaning.report.steps} == {
        "html": (0, 40),
        "duplicates": (16, 0),
        "leaks": (4, 0),
    }
    made = client.files.retrieve(cleaning.cleaned_file or "")
    assert (made.filename, made.purpose, made.status) == ("train-cleaned.jsonl", "fine-tune", "processed")
    assert made.lineage is not None
    assert (made.lineage.cleaning, made.lineage.file) == (cleaning.id, source.id)
    assert (made.lineage.rows_before, made.lineage.rows_after) == (40, 20)
    assert made.report is not None
    assert (made.report.format, made.report.rows) == ("openai_chat", 20)
    cleaned = [json.loads(line) for line in client.files.content(made.id).splitlines()]
    assert [row["messages"] for row in cleaned] == [row["messages"] for row in rows[4:]]
    job = client.jobs.create(BASE, made.id, held_out.id, tuning={**FAST, "n_epochs": 1}).wait(timeout=500)
    assert job.training_file == made.id
    assert client.files.delete(source.id).deleted, "nothing needs it any more"
    assert client.files.retrieve(made.id).lineage == made.lineage
