"""`tunewright evals` against the service that only pretends: what is sent, what is printed, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import test_cli
from test_cli import FakeService, Run, page

_environment, run, service = test_cli._environment, test_cli.run, test_cli.service  # fixtures

EVALUATIONS = "/v1/evaluations"
EXAMPLES = Path(__file__).parents[2] / "service" / "tunewright" / "api" / "evaluations" / "examples.json"
DONE: dict[str, Any] = json.loads(EXAMPLES.read_text())["EvaluationObject"][0]
EVALUATION = f"{EVALUATIONS}/{DONE['id']}"


@pytest.fixture
def evals(service: FakeService) -> FakeService:
    service.replies = {
        ("POST", EVALUATIONS): (200, {**DONE, "status": "queued", "report": None}),
        ("GET", EVALUATIONS): (200, page([DONE])),
        ("GET", EVALUATION): (200, DONE),
    }
    return service


def test_create_sends_what_was_given(evals: FakeService, run: Run, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    code, out, _ = run(
        "evals", "create", "--model", "support", "--against", "a", "--against", "b", "--file", "file-1", "--metric",
        "schema_valid", "--json-schema", str(schema), "--rows", "9", "--column", "prompt=question", "--extract",
        "last_number",
    )  # fmt: skip
    assert (code, out) == (0, f"{DONE['id']}\n")
    assert json.loads(evals.requests[-1][2]) == {
        "model": "support",
        "against": ["a", "b"],
        "data": "file-1",
        "metrics": ["schema_valid"],
        "reading": {"columns": {"prompt": "question"}},
        "extract": "last_number",
        "json_schema": {"type": "object"},
        "rows": 9,
    }
    schema.write_text("[")
    code, _, told = run("evals", "create", "--model", "m", "--file", "file-1", "--json-schema", str(schema))
    assert (code, "is no JSON" in told) == (2, True)


def test_list_show_and_compare_have_the_figures(evals: FakeService, run: Run) -> None:
    _, listed, _ = run("evals", "list")
    assert "accuracy 0.900 (0.833 to 0.942)" in listed
    _, shown, _ = run("evals", "show", DONE["id"])
    for text in ("asked for as support", "0.880 (0.812 to 0.936)", "0.400 (0.317 to 0.489)", "120 of 120"):
        assert text in shown
    _, compared, _ = run("evals", "compare", DONE["id"])
    for text in (
        "0.500 (0.397 to 0.594)",
        "62",
        "row 17: better than tunewright-tiny in accuracy",
        "The card is",
    ):
        assert text in compared
    _, as_json, _ = run("evals", "compare", DONE["id"], "--json")
    assert json.loads(as_json)["comparisons"][0]["p_value"] == 0.0


def test_without_another_model_there_is_nothing_to_compare(evals: FakeService, run: Run) -> None:
    report = {**DONE["report"], "comparisons": []}
    evals.replies["GET", EVALUATION] = (200, {**DONE, "report": report})
    code, _, told = run("evals", "compare", DONE["id"])
    assert code == 1
    assert "create it with --against" in told


def test_limits_are_options_and_the_verdict_is_an_exit_code(evals: FakeService, run: Run) -> None:
    code, _, told = run(
        "evals", "create", "--model", "m", "--file", "file-1", "--min", "accuracy=0.8", "--max-drop", "accuracy=0.02",
        "--max", "perplexity=20", "--against", "n",
    )  # fmt: skip
    assert code == 0, told
    assert json.loads(evals.requests[-1][2])["require"] == [
        {"metric": "accuracy", "min": 0.8, "max_drop": 0.02},
        {"metric": "perplexity", "max": 20},
    ]
    for wrong, words in (("speed=1", "is none of accuracy"), ("accuracy=much", "is no number")):
        code, _, told = run("evals", "create", "--model", "m", "--file", "file-1", "--min", wrong)
        assert (code, words in told) == (2, True), told
    code, out, _ = run("evals", "verdict", DONE["id"])
    assert (code, "verdict: pass" in out, "min is 0.8" in out) == (0, True, True)
    assert "verdict: pass" in run("evals", "show", DONE["id"])[1]
    for verdict, wanted in (("fail", 1), ("not_enough_data", 3)):
        judgement = {"verdict": verdict, "reasons": []}
        evals.replies["GET", EVALUATION] = (
            200,
            {**DONE, "report": {**DONE["report"], "judgement": judgement}},
        )
        code, out, _ = run("evals", "verdict", DONE["id"])
        assert (code, verdict.replace("_", " ") in out) == (wanted, True)
        assert json.loads(run("evals", "verdict", DONE["id"], "--json")[1])["verdict"] == verdict
    evals.replies["GET", EVALUATION] = (200, {**DONE, "report": {**DONE["report"], "judgement": None}})
    code, _, told = run("evals", "verdict", DONE["id"])
    assert (code, "has no limits" in told) == (1, True)


def test_pairs_are_rated_by_people(evals: FakeService, run: Run, tmp_path: Path) -> None:
    examples = json.loads(EXAMPLES.read_text())
    evals.replies |= {
        ("GET", f"{EVALUATION}/pairs"): (200, b"id,asked,a,b,choice\n1,q,x,y,\n"),
        ("POST", f"{EVALUATION}/ratings"): (200, examples["RatingsObject"][0]),
        ("GET", f"{EVALUATION}/ratings"): (200, examples["RatingsObject"][0]),
    }
    sheet = tmp_path / "pairs.csv"
    code, out, told = run("evals", "pairs", DONE["id"], "--format", "csv", "-o", str(sheet))
    assert (code, out) == (0, f"{sheet}\n"), told
    assert "id,asked" in run("evals", "pairs", DONE["id"])[1]
    code, _, told = run("evals", "rate", DONE["id"], str(sheet), "--rater", "ann")
    assert (code, "there is no choice" in told) == (1, True)
    sheet.write_text(sheet.read_text().replace("y,", "y,b"))
    code, out, told = run("evals", "rate", DONE["id"], str(sheet), "--rater", "ann")
    assert code == 0, told
    assert json.loads(evals.requests[-1][2]) == {"rater": "ann", "ratings": [{"id": "1", "choice": "b"}]}
    for shown in (out, run("evals", "ratings", DONE["id"])[1]):
        assert "0.750 (0.650 to 0.840)" in shown
        assert "rater ann and rater bob agree on 80.0% of 60 pairs: kappa 0.580" in shown


def test_a_judge_is_asked_for_and_its_choices_are_shown(evals: FakeService, run: Run) -> None:
    run(
        "evals",
        "create",
        "--model",
        "m",
        "--against",
        "n",
        "--file",
        "file-1",
        "--judge",
        "j",
        "--calibrate",
        "9",
    )
    assert json.loads(evals.requests[-1][2])["judge"] == {"model": "j", "calibrate": 9}
    run("evals", "create", "--model", "m", "--against", "n", "--file", "file-1", "--judge-elsewhere")
    assert json.loads(evals.requests[-1][2])["judge"] == {"external": True}
    code, _, told = run("evals", "create", "--model", "m", "--file", "file-1", "--calibrate", "9")
    assert (code, "is for a judge" in told) == (2, True)
    judged = {
        "against": "n", "judge": "j", "wins": 7, "ties": 2, "losses": 1, "inconsistent": 1, "unjudged": 0,
        "first_preferred": 0.55,
    }  # fmt: skip
    known = {"rows": 9, "agreement": 0.7777, "kappa": 0.55, "ties": 1}
    report = {**DONE["report"], "judged": [judged], "calibration": known}
    evals.replies["GET", EVALUATION] = (200, {**DONE, "report": report})
    shown = run("evals", "show", DONE["id"])[1]
    assert "0.550" in shown
    assert "agrees with the data on 77.8% of 9 pairs: kappa 0.550" in shown


def test_reports_and_cards_of_models_are_written(evals: FakeService, run: Run, tmp_path: Path) -> None:
    evals.replies |= {
        ("GET", "/v1/models/m/report"): (200, b"<!doctype html>"),
        ("GET", "/v1/models/m/card"): (200, b"---"),
    }
    page = tmp_path / "report.html"
    code, out, told = run("models", "report", "m", "-o", str(page))
    assert (code, out) == (0, f"{page}\n"), told
    assert "<!doctype html>" in page.read_text()
    assert "---" in run("models", "card", "m")[1]
    code, _, told = run("models", "card", "m", "-o", str(tmp_path / "none" / "README.md"))
    assert (code, "cannot be written" in told) == (1, True)


def test_a_gate_is_set_and_shown_by_options_of_aliases(evals: FakeService, run: Run) -> None:
    alias = json.loads((EXAMPLES.parents[1] / "aliases" / "examples.json").read_text())["AliasObject"][0]
    path = "/v1/aliases/support-bot"
    evals.replies |= {("PUT", path): (200, alias), ("GET", path): (200, alias)}
    gate = [
        "--on",
        "file-1",
        "--min",
        "accuracy=0.8",
        "--max-drop",
        "accuracy=0.1",
        "--extract",
        "first_line",
    ]
    for options, sent in (
        (gate, {"evaluation": {"data": "file-1", "metric": "accuracy", "extract": "first_line"}, "min": 0.8,
                "max_drop": 0.1}),
        (["--no-forgetting"], {"no_forgetting": True}),
        (["--on", "file-1", "--max", "perplexity=9", "--no-forgetting"],
         {"evaluation": {"data": "file-1", "metric": "perplexity"}, "max": 9, "no_forgetting": True}),
        (["--require-nothing"], None),
    ):  # fmt: skip
        code, _, told = run("aliases", "set", "support-bot", "m", *options)
        assert code == 0, told
        assert json.loads(evals.requests[-1][2])["require"] == sent
    run("aliases", "set", "support-bot", "m", "--force")
    body = json.loads(evals.requests[-1][2])
    assert (body["force"], "require" in body) == (True, False)
    for options in (["--on", "file-1"], ["--min", "accuracy=1"], [*gate, "--min", "macro_f1=1"]):
        code, _, told = run("aliases", "set", "support-bot", "m", *options)
        assert (code, "are given together" in told) == (2, True)
    assert (
        "accuracy on file-Hn4bX9zK2mWq7Tc1Vd6RjL8s: min 0.8, max drop 0.02"
        in run("aliases", "show", "support-bot")[1]
    )


def test_a_suite_is_asked_for_in_the_place_of_a_file(evals: FakeService, run: Run) -> None:
    code, out, _ = run(
        "evals", "create", "--model", "support", "--suite", "humaneval", "--samples", "10", "--temperature", "0.8",
        "--quick",
    )  # fmt: skip
    assert (code, out) == (0, f"{DONE['id']}\n")
    assert json.loads(evals.requests[-1][2]) == {
        "model": "support",
        "suite": {"name": "humaneval", "samples": 10},
        "metrics": "auto",
        "rows": 200,
        "temperature": 0.8,
    }
    for given, told in (
        ((), "either --file or --suite"),
        (("--file", "file-1", "--suite", "mmlu"), "either --file or --suite"),
        (("--file", "file-1", "--shots", "2"), "are of a --suite"),
    ):
        code, _, error = run("evals", "create", "--model", "support", *given)
        assert (code, told in error) == (2, True), given


def test_show_tells_the_suite_and_what_was_forgotten(evals: FakeService, run: Run) -> None:
    reason = {"name": "forgetting", "verdict": "fail", "message": "mmlu is 20.0% below that of tiny"}
    judged = {**DONE["report"], "judgement": {"verdict": "fail", "reasons": [reason]}}
    suite = {"name": "mmlu", "shots": None, "samples": 1}
    evals.replies["GET", EVALUATION] = (
        200,
        {**DONE, "data": None, "filename": "", "suite": suite, "report": judged},
    )
    _, shown, _ = run("evals", "show", DONE["id"])
    assert "suite\tname=mmlu samples=1" in shown
    assert "mmlu is 20.0% below that of tiny" in shown
    assert "file" not in [line.split("\t")[0] for line in shown.splitlines()]
