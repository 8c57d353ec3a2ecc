"""Evaluations: requests, and reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, ok
from samples import file

import tunewright_client as tw
from tunewright_client import Evaluation, Tunewright

EVALUATIONS = "/v1/evaluations"
FIGURE = {"metric": "accuracy", "value": 0.9, "low": 0.8, "high": 0.95, "interval": "wilson"}


def evaluation(status: str = "running", **fields: Any) -> dict[str, Any]:
    models = [{"name": "m", "asked": "alias", "content": "0"}, {"name": "n", "asked": "n", "content": "1"}]
    return {
        "id": "eval-1",
        "status": status,
        "model": "m",
        "against": ["n"],
        "models": models,
        "data": "file-1",
        **fields,
    }


def test_an_evaluation_is_created_with_the_given_fields_only(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", EVALUATIONS, ok(evaluation("queued")))
    made = client.evaluations.create("alias", "file-1")
    assert isinstance(made, Evaluation)
    assert (made.model, made.models[0].asked, made.status) == ("m", "alias", tw.JobStatus.QUEUED)
    assert server.requests[-1].json == {"model": "alias", "data": "file-1", "metrics": "auto"}
    client.evaluations.create(
        "alias",
        "file-1",
        against="n",
        metrics="accuracy",
        rows=5,
        temperature=0.0,
        json_schema={"type": "object"},
    )
    assert server.requests[-1].json == {
        "model": "alias",
        "against": ["n"],
        "data": "file-1",
        "metrics": ["accuracy"],
        "rows": 5,
        "temperature": 0.0,
        "json_schema": {"type": "object"},
    }


def test_limits_are_sent_and_the_judgement_is_read(server: FakeServer, client: Tunewright) -> None:
    reason = {"name": "min", "verdict": "not_enough_data", "message": "few", "limit": 0.8}
    judgement = {"verdict": "not_enough_data", "reasons": [reason]}
    server.on("POST", EVALUATIONS, ok(evaluation("queued")), ok(evaluation(report={"judgement": judgement})))
    client.evaluations.create("m", "file-1", require={"metric": "accuracy", "min": 0.8})
    assert server.requests[-1].json["require"] == [{"metric": "accuracy", "min": 0.8}]
    limits = [{"metric": "accuracy", "min": 0.8}, {"metric": "macro_f1", "max_drop": 0.1}]
    made = client.evaluations.create("m", "file-1", require=limits)
    assert server.requests[-1].json["require"] == limits
    assert made.report is not None
    assert made.report.judgement is not None
    assert (made.report.judgement.verdict, made.report.judgement.reasons[0].limit) == ("not_enough_data", 0.8)


def test_a_local_file_is_uploaded_first(server: FakeServer, client: Tunewright, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text("{}\n")
    server.on("POST", "/v1/files", ok(file(1)))
    server.on("POST", EVALUATIONS, ok(evaluation("queued")))
    client.evaluations.create("m", tmp_path / "test.jsonl", idempotency_key="k")
    assert server.requests[-1].json["data"] == "file-1"
    assert [request.headers["idempotency-key"] for request in server.requests] == ["k-data", "k"]


def test_the_report_is_typed(server: FakeServer, client: Tunewright) -> None:
    report = {
        "rows": 9,
        "metrics": ["accuracy"],
        "models": [
            {"model": "m", "figures": [FIGURE]},
            {"model": "n", "figures": [{**FIGURE, "value": 0.1}]},
        ],
        "comparisons": [{"against": "n", "metric": "accuracy", "difference": 0.8, "conclusion": "better"}],
        "changed": [
            {"against": "n", "metric": "accuracy", "better": [{"row": 3, "expected": "x"}], "worse": []}
        ],
    }
    server.on(
        "GET", f"{EVALUATIONS}/eval-1", ok(evaluation("succeeded", report=report, results_file="file-2"))
    )
    done = client.evaluations.wait("eval-1")
    assert done.product == done.results_file == "file-2"
    assert done.report is not None
    ours, theirs = done.report.figure("accuracy"), done.report.figure("accuracy", "n")
    assert ours is not None
    assert theirs is not None
    assert (ours.value, ours.low, theirs.value) == (0.9, 0.8, 0.1)
    assert done.report.figure("bleu") is None
    assert done.report.figure("accuracy", "other") is None
    assert done.report.comparisons[0].conclusion == "better"
    assert done.report.changed[0].better[0].row == 3


def test_pairs_are_exported_and_a_filled_file_is_read(
    server: FakeServer, client: Tunewright, tmp_path: Path
) -> None:
    path = f"{EVALUATIONS}/eval-1"
    server.on("GET", path + "/pairs", ok({}))
    client.evaluations.pairs("eval-1", against="n", rows=3, format="csv")
    assert server.requests[-1].query == {"against": "n", "rows": "3", "format": "csv"}
    rated = {
        "against": "n",
        "rows": 2,
        "win_rate": 0.5,
        "low": 0.1,
        "high": 0.9,
        "conclusion": "no_difference_seen",
    }
    server.on("POST", path + "/ratings", ok({"evaluation": "eval-1", "raters": ["ann"], "models": [rated]}))
    server.on("GET", path + "/ratings", ok({"evaluation": "eval-1"}))
    wanted = {"rater": "ann", "ratings": [{"id": "1", "choice": "a"}, {"id": "3", "choice": "tie"}]}
    sheet = tmp_path / "filled.csv"
    for text in (
        '\ufeffid,asked,a,b,choice\r\n1,q,x,"y\nz",A\r\n2,q,x,y,\r\n3,q,x,y,Tie\r\n',
        "id;asked;a;b;choice\n1;q;x;y;a\n2;q;x;y;\n3;q;x;y; tie \n",
        '{"id": "1", "choice": "a"}\n{"id": "2", "choice": ""}\n\n{"id": "3", "choice": "tie"}\n',
    ):
        sheet.write_text(text, encoding="utf-8", newline="")
        found = client.evaluations.rate("eval-1", "ann", sheet)
        assert server.requests[-1].json == wanted
    assert (found.models[0].win_rate, found.raters) == (0.5, ["ann"])
    client.evaluations.rate("eval-1", "ann", {"1": "a", "3": "tie"})
    assert server.requests[-1].json == wanted
    assert client.evaluations.ratings("eval-1").models == []
    for text, words in (("id,choice\n1,\n", "there is no choice"), ("a,b\n1,2\n", "no column `id`")):
        with pytest.raises(ValueError, match=words):
            client.evaluations.rate("eval-1", "ann", text)
