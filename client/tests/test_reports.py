"""The report of a file is asked for with the options of a job's data, and is typed."""

from __future__ import annotations

import asyncio
from typing import Any

from fake_server import FakeServer, Reply, ok

from tunewright_client import AsyncTunewright, DataReport, Tunewright

REPORT: dict[str, Any] = {
    "object": "file.report", "file_id": "file-1", "filename": "a.jsonl", "container": "jsonl", "format": "openai_chat",
    "kind": "chat", "rows": 2, "is_complete": True, "ignored_fields": [], "turns": None, "characters": None,
    "duplicates": {"copies": 1, "groups": [[1, 2]]},
    "tokens": {
        "model": "tiny", "max_length": 64, "rows": 2, "is_complete": True, "from_cache": False, "examples": 2,
        "tokens": 20, "trained": 8, "cut": 0, "left_out": 0, "lost_trained": 0,
        "lengths": {
            "unit": "tokens", "mean": 10.0, "percentiles": {"50": 10}, "longest": 10,
            "histogram": [{"start": 0, "end": 10, "count": 2}],
        },
    },
    "samples": [{"line": 1, "tokens": 10, "trained": 4, "segments": [{"text": "a", "trained": True}]}],
    "problems": [
        {
            "code": "duplicate_rows", "severity": "warning", "message": "m", "fix": "f", "count": 1,
            "rows": [{"line": 2, "message": "the same as line 1"}],
        }
    ],
    "flags": [], "something_new": 1,
}  # fmt: skip
PATH = "/v1/files/file-1/report"


def check(report: DataReport) -> None:
    assert report.tokens is not None
    assert report.tokens.lengths is not None
    assert (report.tokens.trained, report.tokens.lengths.histogram[0].count) == (8, 2)
    assert report.samples[0].segments[0].trained is True
    assert str(report.problems[0].rows[0]) == "line 2: the same as line 1"


def test_a_report_is_asked_for_with_the_options_of_a_job(server: FakeServer, client: Tunewright) -> None:
    server.on("GET", PATH, ok(REPORT))
    check(client.files.report("file-1", "tiny", max_length=64, columns={"prompt": "a b"}, alpaca="chat"))
    assert server.requests[-1].query == {
        "model": "tiny", "max_length": "64", "columns[prompt]": "a b", "alpaca": "chat",
    }  # fmt: skip
    client.files.report("file-1")
    assert server.requests[-1].query == {}


def test_the_picture_of_a_report_is_text(server: FakeServer, client: Tunewright) -> None:
    server.on("GET", PATH + ".svg", Reply(body=b"<svg/>", headers={"content-type": "image/svg+xml"}))
    assert client.files.report_picture("file-1", "tiny", tags={"role_tag": "who"}) == "<svg/>"
    assert server.requests[-1].query == {"model": "tiny", "tags[role_tag]": "who"}


def test_the_asyncio_client_has_reports_too(server: FakeServer) -> None:
    server.on("GET", PATH, ok(REPORT))

    async def run() -> DataReport:
        async with AsyncTunewright(server.url) as other:
            return await other.files.report("file-1", model="tiny")

    check(asyncio.run(run()))
