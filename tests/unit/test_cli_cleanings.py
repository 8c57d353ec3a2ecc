"""`tunewright cleanings` against the service that only pretends: what is sent, what is printed, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import test_cli
from test_cli import FakeService, Run, event, page

_environment, run, service = test_cli._environment, test_cli.run, test_cli.service  # fixtures

CLEANINGS = "/v1/cleanings"
CLEANING = f"{CLEANINGS}/clean-1"
EVENTS = [
    event(1, "Cleaning 240 rows: html, duplicates"),
    event(2, "clean 120/240", step=120, total_steps=240, phase="clean", eta_seconds=61.0),
    event(3, "clean 240/240", step=240, total_steps=240, phase="clean", eta_seconds=0.0),
]
REPORT: dict[str, Any] = {
    "container": "jsonl",
    "format": "openai_chat",
    "kind": "chat",
    "unit": "line",
    "rows_before": 240,
    "rows_after": 234,
    "changed": 3,
    "steps": [
        {"step": "html", "changed": 3, "found": {"HTML": {"rows": 3, "places": [4, 90, 201]}}},
        {
            "step": "duplicates",
            "removed": 6,
            "found": {"duplicate": {"rows": 6, "places": [7, 8, 9, 10, 11, 12]}},
        },
    ],
    "groups": [],
}


def cleaning(status: str = "succeeded", **fields: Any) -> dict[str, Any]:
    return {
        "id": "clean-1",
        "status": status,
        "file": "file-1",
        "filename": "train.jsonl",
        "steps": [{"type": "html"}, {"type": "language", "keep": ["en", "de"], "min_characters": 40}],
        "data": None,
        "cleaned_file": "file-2" if status == "succeeded" else None,
        "progress": {"step": 240, "total_steps": 240, "phase": "clean"},
        "report": REPORT if status == "succeeded" else None,
        **fields,
    }


@pytest.fixture
def cleanings(service: FakeService) -> FakeService:
    """The service with one cleaning."""
    service.replies = {
        ("POST", CLEANINGS): (200, cleaning("queued")),
        ("GET", CLEANINGS): (200, page([cleaning(), cleaning("running", id="clean-2")])),
        ("GET", CLEANING): (200, cleaning()),
        ("GET", f"{CLEANING}/events"): (200, page(EVENTS[::-1])),
        ("GET", f"{CLEANING}/logs"): (200, b"one\ntwo\n"),
        **{
            ("POST", f"{CLEANING}/{action}"): (200, cleaning("paused"))
            for action in ("pause", "resume", "cancel")
        },
    }
    return service


@pytest.mark.parametrize(
    "command", ["create", "watch", "list", "show", "logs", "events", "pause", "resume", "cancel"]
)
def test_help_is_complete(run: Run, command: str) -> None:
    code, out, err = run("cleanings", command, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: tunewright cleanings {command}" in out
    assert f"\n    tunewright cleanings {command} " in out


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["--file", "file-1"], "--step"),
        (["--step", "html"], "--file"),
        (["--file", "/no/such/file.jsonl", "--step", "html"], "no such file"),
        (["--file", "file-1", "--step", "polish"], "no such step; there are html"),
        (["--file", "file-1", "--step", "html:tags=a"], "no option tags"),
        (["--file", "file-1", "--step", "secrets:action=sell"], "action"),
        (["--file", "file-1", "--step", "html", "--step", "html"], "html is there twice"),
        (["--file", "file-1", "--step", "leaks"], "(--validation-file)"),
        (["--file", "file-1", "--step", "html", "--validation-file", "file-2"], "not among the steps"),
        (["--file", "file-1", "--step", "html", "--column", "question=q"], "question is none of"),
    ],
)
def test_wrong_usage_is_2_and_nothing_is_sent(
    run: Run, cleanings: FakeService, argv: list[str], why: str
) -> None:
    code, out, err = run("cleanings", "create", *argv)
    assert (code, out) == (2, "")
    assert why in err
    assert cleanings.requests == []


def test_a_cleaning_is_created_with_what_was_given(run: Run, cleanings: FakeService, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n")
    code, out, err = run(
        "cleanings", "create", "--file", str(tmp_path / "train.jsonl"), "--step", "html",
        "--step", "language:keep=en,keep=de", "--step", "leaks:similarity=none", "--step", "length:min_answer=5",
        "--validation-file", "file-9", "--column", "prompt=question", "--alpaca", "template", "--metadata", "a=b",
    )  # fmt: skip
    assert (code, out, err) == (0, "clean-1\n", "")
    assert cleanings.body("POST", CLEANINGS) == {
        "file": "file-1",
        "steps": [
            {"type": "html"},
            {"type": "language", "keep": ["en", "de"]},
            {"type": "leaks", "similarity": None, "against": "file-9"},
            {"type": "length", "min_answer": 5},
        ],
        "data": {"columns": {"prompt": "question"}, "alpaca": "template"},
        "metadata": {"a": "b"},
    }
    run("cleanings", "create", "-f", "file-1", "--step", "html")
    assert cleanings.body("POST", CLEANINGS) == {"file": "file-1", "steps": [{"type": "html"}]}


def test_what_each_step_did_is_a_table(run: Run, cleanings: FakeService) -> None:
    code, out, _ = run("cleanings", "show", "clean-1")
    assert code == 0
    assert out.splitlines()[-5:] == [
        "step\tfound\trows\tremoved\tchanged\tflagged\tlines",
        "html\t\t\t0\t3\t0\t",
        "\tHTML\t3\t\t\t\t4, 90, 201",
        "duplicates\t\t\t6\t0\t0\t",
        "\tduplicate\t6\t\t\t\t7, 8, 9, 10, 11, ...",
    ]
    assert "file\tfile-1 (train.jsonl)" in out
    assert "step\tlanguage:keep=en,keep=de,min_characters=40" in out
    assert "result\tfile-2" in out
    assert "rows after\t234" in out
    assert json.loads(run("cleanings", "show", "clean-1", "--json")[1])["report"]["rows_after"] == 234


def test_the_list_has_what_is_left(run: Run, cleanings: FakeService) -> None:
    code, out, _ = run("cleanings", "list")
    assert code == 0
    lines = [line.split("\t") for line in out.splitlines()]
    assert lines[0] == ["ID", "STATUS", "READ", "FILE", "LEFT", "RESULT", "CREATED"]
    assert lines[1][:6] == ["clean-1", "succeeded", "240/240", "train.jsonl", "234/240", "file-2"]
    assert lines[2][1:6] == ["running", "240/240", "train.jsonl", "-", "-"]


def test_watching_shows_the_rows_and_prints_the_new_file(run: Run, cleanings: FakeService) -> None:
    code, out, err = run("cleanings", "watch", "clean-1")
    assert (code, out) == (0, "file-2\n")
    assert err.splitlines() == [
        "Cleaning 240 rows: html, duplicates",
        "120/240  clean  ETA 1m01s",
        "240/240  clean",
    ]
    code, out, err = run("cleanings", "create", "--file", "file-1", "--step", "html", "--watch")
    assert (code, out, err.splitlines()[0]) == (0, "file-2\n", "clean-1")


def test_one_that_fails_says_why(run: Run, cleanings: FakeService) -> None:
    error = {"code": "nothing_left", "message": "no row is left of 240: the steps remove all of them"}
    cleanings.replies["GET", CLEANING] = 200, cleaning("failed", error=error, report=REPORT)
    code, out, err = run("cleanings", "watch", "clean-1")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == f"error: clean-1 failed: {error['message']} (nothing_left)"
    assert f"error\t{error['message']}" in run("cleanings", "show", "clean-1")[1]


@pytest.mark.parametrize("action", ["pause", "resume", "cancel"])
def test_actions(run: Run, cleanings: FakeService, action: str) -> None:
    assert run("cleanings", action, "clean-1") == (0, "clean-1 paused\n", "")


def test_events_and_logs(run: Run, cleanings: FakeService) -> None:
    assert "Cleaning 240 rows" in run("cleanings", "events", "clean-1")[1]
    assert run("cleanings", "logs", "clean-1")[1] == "one\ntwo\n"
