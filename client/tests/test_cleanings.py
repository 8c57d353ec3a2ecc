"""Cleanings: requests, reports, waiting, and the lineage of the new file."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fake_server import FakeServer, Reply, ok, refuse
from samples import CLEANING_PATH, cleaning, event, file, page

import tunewright_client as tw
from tunewright_client import AsyncTunewright, Cleaning, Tunewright

CLEANINGS = "/v1/cleanings"
REPORT = {
    "container": "jsonl",
    "format": "openai_chat",
    "kind": "chat",
    "unit": "line",
    "rows_before": 48,
    "rows_after": 40,
    "changed": 3,
    "steps": [{"step": "html", "changed": 3, "found": {"HTML": {"rows": 3, "places": [2]}}}],
    "groups": [{"name": "yes", "rows": 9, "kept": 4}],
}


def test_a_cleaning_is_created_with_the_given_fields_only(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", CLEANINGS, refuse(503), ok(cleaning("queued")))
    made = client.cleanings.create("file-1", ["html"], idempotency_key="k")
    assert isinstance(made, Cleaning)
    assert made.status == tw.JobStatus.QUEUED
    assert [request.json for request in server.requests] == [
        {"file": "file-1", "steps": [{"type": "html"}]}
    ] * 2
    assert [request.headers["idempotency-key"] for request in server.requests] == ["k", "k"]
    client.cleanings.create(
        "file-1",
        ["html", {"type": "leaks", "against": "file-9"}],
        data={"columns": {"prompt": "question"}},
        metadata={"a": "b"},
    )
    assert server.requests[-1].json == {
        "file": "file-1",
        "steps": [{"type": "html"}, {"type": "leaks", "against": "file-9"}],
        "data": {"columns": {"prompt": "question"}},
        "metadata": {"a": "b"},
    }


def test_local_files_are_uploaded_first(server: FakeServer, tmp_path: Path) -> None:
    for name in ("train.jsonl", "valid.jsonl"):
        (tmp_path / name).write_text("{}\n")
    server.on("POST", "/v1/files", ok(file(1)), ok(file(2)))
    server.on("POST", CLEANINGS, ok(cleaning("queued")))
    steps = [{"type": "leaks", "against": tmp_path / "valid.jsonl"}]

    async def run() -> tw.AsyncCleaning:
        async with AsyncTunewright(server.url) as client:
            return await client.cleanings.create(tmp_path / "train.jsonl", steps, idempotency_key="k")

    assert isinstance(asyncio.run(run()), tw.AsyncCleaning)
    assert server.requests[-1].json == {"file": "file-2", "steps": [{"type": "leaks", "against": "file-1"}]}
    keys = [request.headers["idempotency-key"] for request in server.requests]
    assert keys == ["k-against", "k-file", "k"]
    assert steps == [{"type": "leaks", "against": tmp_path / "valid.jsonl"}], "they are the caller's"


def test_the_report_of_a_cleaning_is_typed(server: FakeServer, client: Tunewright) -> None:
    server.on("GET", CLEANING_PATH, ok(cleaning("succeeded", report=REPORT)))
    read = client.cleanings.retrieve("clean-1")
    assert read.cleaned_file == read.product == "file-2"
    assert read.report is not None
    assert (read.report.rows_before, read.report.rows_after, read.report.changed) == (48, 40, 3)
    [step] = read.report.steps
    assert (step.step, step.changed, step.found["HTML"].places) == ("html", 3, [2])
    assert [(group.name, group.kept) for group in read.report.groups] == [("yes", 4)]


def test_a_cleaning_has_the_methods_of_a_job(server: FakeServer, client: Tunewright) -> None:
    for method, path, reply in (
        ("GET", CLEANINGS, ok(page([cleaning()]))),
        ("GET", CLEANING_PATH, ok(cleaning("succeeded"))),
        ("POST", f"{CLEANING_PATH}/cancel", ok(cleaning("cancelled"))),
        ("POST", f"{CLEANING_PATH}/pause", ok(cleaning("pausing"))),
        ("POST", f"{CLEANING_PATH}/resume", ok(cleaning("queued"))),
        ("GET", f"{CLEANING_PATH}/logs", Reply(200, b"one\n", {"content-type": "text/plain"})),
        ("GET", f"{CLEANING_PATH}/events", ok(page([event(2), event(1)]))),
    ):
        server.on(method, path, reply)
    [listed] = client.cleanings.list(limit=5)
    assert isinstance(listed, Cleaning)
    assert listed.cancel().is_final
    assert listed.pause().status == tw.JobStatus.PAUSING
    assert listed.resume().status == "queued"
    assert listed.logs() == "one\n"
    assert [item.id for item in listed.events()] == ["ftevent-2", "ftevent-1"]
    assert listed.refresh().cleaned_file == "file-2"


def test_one_of_which_nothing_is_left_carries_its_report(server: FakeServer, client: Tunewright) -> None:
    error = {"code": "nothing_left", "message": "no row is left of 48", "param": None}
    server.on("GET", CLEANING_PATH, ok(cleaning()), ok(cleaning("failed", error=error, report=REPORT)))
    with pytest.raises(tw.JobFailedError, match="no row is left") as failed:
        client.cleanings.wait("clean-1", poll_interval=0.01)
    assert failed.value.code == "nothing_left"
    assert isinstance(failed.value.job, Cleaning)
    assert failed.value.job.report is not None


def test_a_file_has_its_lineage(server: FakeServer, client: Tunewright) -> None:
    lineage = {
        "cleaning": "clean-1", "file": "file-1", "filename": "train.jsonl", "sha256": "0" * 64,
        "steps": [{"type": "html"}], "rows_before": 48, "rows_after": 40,
    }  # fmt: skip
    server.on("GET", "/v1/files/file-2", ok({**file(2), "lineage": lineage}))
    found = client.files.retrieve("file-2").lineage
    assert found is not None
    assert (found.cleaning, found.file, found.rows_after) == ("clean-1", "file-1", 40)
    assert found.steps == [{"type": "html"}]
