"""`tunewright syntheses` against the service that only pretends: what is sent, what is printed, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import test_cli
from test_cli import FakeService, Run, page

_environment, run, service = test_cli._environment, test_cli.run, test_cli.service  # fixtures

SYNTHESES, SYNTHESIS = "/v1/syntheses", "/v1/syntheses/synth-1"
GRADER = {"type": "string_check", "name": "g", "operation": "eq", "input": "a", "reference": "b"}


def synthesis(status: str = "succeeded", **fields: Any) -> dict[str, Any]:
    return {
        "id": "synth-1", "status": status, "model": "teacher", "file": "file-1", "filename": "train.jsonl",
        "teacher": {"name": "teacher", "asked": "bot", "content": "c0ffee"}, "seed": 0,
        "task": {"type": "answers", "n": 2, "grader": None}, "made_file": "file-2", "dropped_file": "file-3",
        "progress": {"step": 8, "total_steps": 8, "phase": "answers"},
        "report": {
            "requests": 8, "rows_made": 6, "prompt_tokens": 90, "completion_tokens": 30,
            "dropped": {"cut_off": {"rows": 2, "places": [3, 4], "first": "and so"}},
        },
        **fields,
    }  # fmt: skip


@pytest.fixture
def syntheses(service: FakeService) -> FakeService:
    """The service with one synthesis."""
    service.replies = {
        ("POST", SYNTHESES): (200, synthesis("queued")),
        ("GET", SYNTHESES): (200, page([synthesis()])),
        ("GET", SYNTHESIS): (200, synthesis()),
        ("GET", f"{SYNTHESIS}/events"): (200, page([])),
        ("GET", f"{SYNTHESIS}/logs"): (200, b"one\ntwo\n"),
        ("POST", f"{SYNTHESIS}/pause"): (200, synthesis("paused")),
    }
    return service


@pytest.mark.parametrize(
    "command", ["create", "watch", "list", "show", "logs", "events", "pause", "resume", "cancel"]
)
def test_help_is_complete(run: Run, command: str) -> None:
    code, out, err = run("syntheses", command, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: tunewright syntheses {command}" in out
    assert f"\n    tunewright syntheses {command} " in out


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["--file", "file-1", "--task", "answers"], "--model"),
        (["-m", "m", "-f", "file-1", "--task", "poems"], "'poems' is not one of"),
        (["-m", "m", "-f", "file-1", "--task", "rows"], "needs a --count"),
        (["-m", "m", "-f", "file-1", "--task", "rows", "--count", "2", "--best"], "--best is for --task answers"),
        (["-m", "m", "-f", "file-1", "--task", "answers", "--per-row", "2"], "--per-row is for --task paraphrases"),
        (["-m", "m", "-f", "file-1", "--task", "answers", "--similarity", "0.9", "--keep-alike"], "not both"),
    ],
)  # fmt: skip
def test_wrong_usage_is_2_and_nothing_is_sent(
    run: Run, syntheses: FakeService, argv: list[str], why: str
) -> None:
    code, out, err = run("syntheses", "create", *argv)
    assert (code, out) == (2, "")
    assert why in err
    assert syntheses.requests == []


def test_a_synthesis_is_created_with_what_was_given(run: Run, syntheses: FakeService, tmp_path: Path) -> None:
    (tmp_path / "g.json").write_text(json.dumps(GRADER))
    code, out, err = run(
        "syntheses", "create", "-m", "bot", "-f", "file-1", "--task", "answers", "--n", "2", "--best", "--keep-alike",
        "--grader", f"@{tmp_path / 'g.json'}", "--min-score", "0.5", "--rows", "9", "--temperature", "1",
        "--top-p", "0.9", "--max-tokens", "64", "--seed", "3", "--column", "text=question", "--metadata", "a=b",
        "--drop-source",
    )  # fmt: skip
    assert (code, out, err) == (0, "synth-1\n", "")
    assert syntheses.body("POST", SYNTHESES) == {
        "model": "bot", "file": "file-1", "rows": 9, "temperature": 1.0, "top_p": 0.9, "max_tokens": 64, "seed": 3,
        "task": {"type": "answers", "n": 2, "grader": GRADER, "min_score": 0.5, "keep": "best"},
        "deduplicate": {"similarity": None, "source": True}, "data": {"columns": {"text": "question"}},
        "metadata": {"a": "b"},
    }  # fmt: skip
    run(
        "syntheses", "create", "-m", "bot", "-f", "file-1", "--task", "rows", "--count", "5", "--topic", "a b",
        "--keep-source",
    )  # fmt: skip
    sent = syntheses.body("POST", SYNTHESES)
    assert sent == {
        "model": "bot", "file": "file-1", "task": {"type": "rows", "count": 5, "topics": ["a b"]},
        "deduplicate": {"source": False},
    }  # fmt: skip


def test_what_was_made_and_dropped_is_shown(run: Run, syntheses: FakeService) -> None:
    code, out, _ = run("syntheses", "show", "synth-1")
    assert code == 0
    assert "teacher (c0ffee)" in out
    assert "6 of 8" in out
    assert out.splitlines()[-2:] == ["dropped as\trows\tplaces\tthe first", "cut_off\t2\t3 4\tand so"]
    code, out, _ = run("syntheses", "list")
    assert (code, "6/8" in out, "file-2" in out) == (0, True, True)
    assert run("syntheses", "watch", "synth-1")[1].splitlines()[-1] == "file-2"
    assert run("syntheses", "pause", "synth-1")[1] == "synth-1 paused\n"
    assert run("syntheses", "logs", "synth-1")[1] == "one\ntwo\n"
