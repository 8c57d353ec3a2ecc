"""`tunewright graders` against the service that only pretends: what is sent, what is printed, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import test_cli
from test_cli import FakeService, Run

_environment, run, service = test_cli._environment, test_cli.run, test_cli.service  # fixtures

RUN, VALIDATE = "/v1/fine_tuning/alpha/graders/run", "/v1/fine_tuning/alpha/graders/validate"
GRADER = {"type": "regex", "name": "number", "pattern": "[0-9]"}


def answer(**errors: object) -> dict[str, object]:
    metadata = {
        "name": "number",
        "type": "regex",
        "errors": {"other_error": False, **errors},
        "token_usage": None,
    }
    return {"reward": 0.5, "sub_rewards": {"a": 0.25}, "metadata": metadata}


def test_a_grader_of_a_file_is_run(run: Run, service: FakeService, tmp_path: Path) -> None:
    (tmp_path / "grader.json").write_text(json.dumps(GRADER))
    service.replies["POST", RUN] = (200, answer())
    code, out, _ = run("graders", "run", f"@{tmp_path / 'grader.json'}", "it is 4", "--item", '{"a": 1}')
    assert (code, out.split()) == (0, ["reward", "0.5000", "a", "0.2500"])
    assert service.body("POST", RUN) == {"grader": GRADER, "model_sample": "it is 4", "item": {"a": 1}}


def test_a_grader_that_failed_is_told_and_is_a_failure(run: Run, service: FakeService) -> None:
    service.replies["POST", RUN] = (200, answer(sample_parse_error=True, other_error_details="no JSON"))
    code, out, _ = run("graders", "run", json.dumps(GRADER), "x")
    assert code == 1
    assert "sample_parse_error, no JSON" in out
    code, out, _ = run("graders", "run", json.dumps(GRADER), "x", "--json")
    assert (code, json.loads(out)["reward"]) == (1, 0.5)


def test_a_grader_is_checked(run: Run, service: FakeService) -> None:
    service.replies["POST", VALIDATE] = (200, {"grader": GRADER})
    assert run("graders", "validate", json.dumps(GRADER))[:2] == (
        0,
        "number: a regex grader without faults\n",
    )
    service.replies["POST", VALIDATE] = (400, {"error": {"message": "no such pattern"}})
    code, _, err = run("graders", "validate", json.dumps(GRADER))
    assert (code, "no such pattern" in err) == (1, True)
    for text in ("[1]", "{", "@/nowhere.json"):
        assert run("graders", "validate", text)[0] == 2
