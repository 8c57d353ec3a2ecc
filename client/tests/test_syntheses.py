"""Syntheses: requests, reports, waiting, and the lineage of the new file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, ok
from samples import file

import tunewright_client as tw
from tunewright_client import AsyncTunewright, Synthesis, Tunewright

SYNTHESES, PATH = "/v1/syntheses", "/v1/syntheses/synth-1"
REPORT = {
    "rows_in_file": 48, "rows_drawn": 48, "requests": 48, "rows_made": 45, "scores": None,
    "dropped": {"cut_off": {"rows": 3, "places": [4, 7, 9], "first": "and so"}},
    "prompt_tokens": 900, "completion_tokens": 300, "prompts_version": 1,
}  # fmt: skip


def synthesis(status: str = "running", **fields: Any) -> dict[str, Any]:
    return {
        "id": "synth-1", "object": "synthesis", "created_at": 1, "status": status, "model": "teacher",
        "teacher": {"name": "teacher", "asked": "bot", "content": "c"}, "file": "file-1",
        "task": {"type": "answers", "n": 1}, "made_file": "file-2" if status == "succeeded" else None, **fields,
    }  # fmt: skip


def test_a_synthesis_is_created_with_the_given_fields_only(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n")
    server.on("POST", "/v1/files", ok(file(1)))
    server.on("POST", SYNTHESES, ok(synthesis("queued")))
    with Tunewright(server.url) as client:
        made = client.syntheses.create("bot", "file-1", "answers")
        assert isinstance(made, Synthesis)
        assert (made.status, made.teacher and made.teacher.content) == (tw.JobStatus.QUEUED, "c")
    body = {"model": "bot", "file": "file-1", "task": {"type": "answers"}}
    assert server.requests[-1].json == body
    task = {"type": "rows", "count": 5}
    fields: dict[str, Any] = {"rows": 9, "temperature": 1.0, "top_p": 0.9, "max_tokens": 8, "seed": 3,
                              "deduplicate": {"similarity": None}, "metadata": {"a": "b"}}  # fmt: skip

    async def run() -> tw.AsyncSynthesis:
        async with AsyncTunewright(server.url) as client:
            return await client.syntheses.create("bot", tmp_path / "train.jsonl", task, **fields)

    assert isinstance(asyncio.run(run()), tw.AsyncSynthesis)
    assert server.requests[-1].json == {**body, "task": task, **fields}


def test_its_report_and_its_failure_are_typed(server: FakeServer, client: Tunewright) -> None:
    server.on("GET", PATH, ok(synthesis("succeeded", report=REPORT)))
    read = client.syntheses.wait("synth-1")
    assert read.product == read.made_file == "file-2"
    assert read.report is not None
    assert (read.report.rows_made, read.report.dropped["cut_off"].places) == (45, [4, 7, 9])
    error = {"code": "nothing_made", "message": "no row could be made", "param": None}
    server.on("GET", PATH, ok(synthesis("failed", error=error, report={**REPORT, "rows_made": 0})))
    with pytest.raises(tw.JobFailedError, match="no row could be made") as failed:
        client.syntheses.wait("synth-1")
    assert isinstance(failed.value.job, Synthesis)
    assert failed.value.job.report is not None
    lineage = {"synthesis": "synth-1", "file": "file-1", "task": {"type": "answers"}, "teacher": "teacher",
               "teacher_content": "c", "prompts_version": 1, "seed": 0}  # fmt: skip
    server.on("GET", "/v1/files/file-2", ok({**file(2), "lineage": lineage}))
    found = client.files.retrieve("file-2").lineage
    assert found is not None
    assert (found.synthesis, found.cleaning, found.teacher_content) == ("synth-1", None, "c")
