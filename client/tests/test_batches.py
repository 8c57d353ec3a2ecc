"""Batches: requests, waiting and results; files that are uploaded in parts."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, Reply, ok, refuse
from samples import event, file, page

import tunewright_client as tw
from tunewright_client import AsyncTunewright, Batch, Tunewright

BATCHES, BATCH = "/v1/batches", "/v1/batches/batch-1"
UPLOADS, UPLOAD = "/v1/uploads", "/v1/uploads/upload-1"


def batch(status: str = "in_progress", **fields: Any) -> dict[str, Any]:
    has_ended = status in ("completed", "expired", "cancelled")
    return {
        "id": "batch-1",
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "model": None,
        "errors": None,
        "input_file_id": "file-1",
        "completion_window": "24h",
        "status": status,
        "output_file_id": "file-2" if has_ended else None,
        "error_file_id": "file-3" if has_ended else None,
        "created_at": 1,
        "expires_at": 9,
        f"{status}_at": 5,
        "request_counts": {"total": 4, "completed": 2, "failed": 1},
        "metadata": None,
        **fields,
    }


def upload(status: str = "pending", **fields: Any) -> dict[str, Any]:
    return {"id": "upload-1", "object": "upload", "bytes": 5, "status": status, "file": None, **fields}


def part(number: int) -> dict[str, Any]:
    return {"id": f"part-{number}", "object": "upload.part", "created_at": 1, "upload_id": "upload-1"}


def test_a_batch_is_created_with_the_given_fields_only(
    server: FakeServer, client: Tunewright, tmp_path: Path
) -> None:
    (tmp_path / "requests.jsonl").write_text("{}\n")
    server.on("POST", "/v1/files", ok(file(1)))
    server.on("POST", BATCHES, refuse(503), ok(batch("validating")))
    made = client.batches.create(tmp_path / "requests.jsonl", idempotency_key="k")
    assert isinstance(made, Batch)
    assert (made.status, made.is_final) == ("validating", False)
    assert b'name="purpose"\r\n\r\nbatch' in server.requests[0].body
    sent = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    assert [request.json for request in server.requests[1:]] == [sent] * 2
    assert [request.headers["idempotency-key"] for request in server.requests] == [
        "k-input-file-id",
        "k",
        "k",
    ]
    client.batches.create(
        "file-1", "/v1/completions", completion_window="7d", metadata={"a": "b"}, output_expires_after=3600
    )
    assert server.requests[-1].json == {
        "input_file_id": "file-1",
        "endpoint": "/v1/completions",
        "completion_window": "7d",
        "metadata": {"a": "b"},
        "output_expires_after": {"anchor": "created_at", "seconds": 3600},
    }


@pytest.mark.parametrize("status", ["completed", "expired"])
def test_one_that_has_results_is_waited_for(server: FakeServer, client: Tunewright, status: str) -> None:
    server.on("GET", BATCH, ok(batch()), ok(batch(status)))
    done = client.batches.wait("batch-1", poll_interval=0.01)
    assert (done.status, done.is_final, done.product, done.finished_at) == (status, True, "file-2", 5)
    assert done.progress is not None
    assert (done.progress.step, done.progress.total_steps, done.request_counts.failed) == (3, 4, 1)


def test_one_that_fails_says_in_which_line(server: FakeServer, client: Tunewright) -> None:
    faults = [
        {"code": "invalid_url", "message": "no", "line": 2, "param": "url"},
        {"code": "x", "message": "y"},
    ]
    server.on("GET", BATCH, ok(batch("failed", errors={"object": "list", "data": faults})))
    with pytest.raises(tw.JobFailedError, match="line 2: no") as failed:
        client.batches.wait("batch-1")
    assert failed.value.code == "invalid_url"
    assert isinstance(failed.value.job, Batch)
    assert [str(fault) for fault in failed.value.job.faults] == ["line 2: no", "y"]
    server.on("GET", BATCH, ok(batch("cancelled")))
    with pytest.raises(tw.JobCancelledError):
        client.batches.wait("batch-1")


def test_results_are_those_of_both_files(server: FakeServer, client: Tunewright) -> None:
    lines = [
        {"id": "1", "custom_id": "a", "response": {"status_code": 200, "body": {"n": 1}}, "error": None},
        {"id": "2", "custom_id": "b", "response": {"status_code": 400, "body": {"error": {}}}, "error": None},
        {
            "id": "3",
            "custom_id": "c",
            "response": None,
            "error": {"code": "batch_expired", "message": "late"},
        },
    ]
    server.on("GET", BATCH, ok(batch("completed")))
    for id, some in (("file-2", lines[:1]), ("file-3", lines[1:])):
        text = "".join(json.dumps(line) + "\n" for line in some)
        server.on("GET", f"/v1/files/{id}/content", Reply(200, text.encode(), {"content-type": "text/plain"}))
    results = client.batches.retrieve("batch-1").results()
    assert [(result.custom_id, result.is_answered) for result in results] == [
        ("a", True), ("b", False), ("c", False),
    ]  # fmt: skip
    assert results[0].response is not None
    assert results[0].response.body == {"n": 1}


def test_a_batch_has_the_methods_of_a_job_but_for_pauses(server: FakeServer, client: Tunewright) -> None:
    server.on("GET", BATCHES, ok(page([batch()])))
    server.on("GET", BATCH, ok(batch("completed")))
    server.on("POST", f"{BATCH}/cancel", ok(batch("cancelling")))
    server.on("GET", f"{BATCH}/events", ok(page([event(1)])))
    [listed] = client.batches.list(limit=5)
    assert listed.cancel().status == "cancelling"
    assert [item.id for item in listed.events()] == ["ftevent-1"]
    assert listed.refresh().is_final
    assert not hasattr(listed, "pause")
    assert not hasattr(client.batches, "resume")


def test_a_file_is_sent_in_parts(server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"abcde")
    server.on("POST", UPLOADS, ok(upload()))
    server.on("POST", f"{UPLOAD}/parts", ok(part(1)), refuse(503), ok(part(2)), ok(part(3)))
    server.on("POST", f"{UPLOAD}/complete", ok(upload("completed", file=file(7))))

    async def run() -> tw.File:
        async with AsyncTunewright(server.url) as client:
            return await client.uploads.upload_file(path, "batch", part_size=2, expires_after=3600)

    assert asyncio.run(run()).id == "file-7"
    created, *parts, completed = server.requests
    assert (created.json["bytes"], created.json["purpose"], created.json["filename"]) == (
        5,
        "batch",
        "rows.jsonl",
    )
    assert created.json["expires_after"] == {"anchor": "created_at", "seconds": 3600}
    assert all(b'name="data"' in request.body for request in parts)
    assert parts[1].body == parts[2].body, "a part is retried alone"
    assert completed.json == {
        "part_ids": ["part-1", "part-2", "part-3"], "md5": hashlib.md5(b"abcde").hexdigest(),
    }  # fmt: skip


def test_an_upload_that_fails_is_cancelled(server: FakeServer, client: Tunewright, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"abc")
    server.on("POST", UPLOADS, ok(upload()))
    server.on("POST", f"{UPLOAD}/parts", refuse(400))
    server.on("POST", f"{UPLOAD}/cancel", ok(upload("cancelled")))
    with pytest.raises(tw.BadRequestError):
        client.uploads.upload_file(path)
    assert server.requests[-1].path == f"{UPLOAD}/cancel"
    with pytest.raises(ValueError, match="part_size"):
        client.uploads.upload_file(path, part_size=2**27)
    with pytest.raises(FileNotFoundError):
        client.uploads.upload_file(tmp_path / "none")
