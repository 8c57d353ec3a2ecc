"""Blind rating: what people get, what they send back, and what comes of it."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.test_alias_gates import BASE, CONTENT, NEW, OLD, api, server  # noqa: F401

from judged import add_evaluation, report_of
from tunewright.registry.workspace import Workspace
from tunewright.store.states import JobState
from tunewright.store.store import Store

pytestmark = pytest.mark.each_database

ROWS = 60


@pytest.fixture
def evaluation(store: Store, data: Workspace, api: TestClient) -> str:  # noqa: F811
    """One with answers of three models: those of NEW say new, and one row has the same answer of all."""
    report = report_of(NEW, against={OLD: (0.1, 0.0, 0.2), BASE: (0.1, 0.0, 0.2)})
    id = add_evaluation(store, CONTENT, report)
    lines = []
    for n in range(1, ROWS + 1):
        texts = ["same"] * 3 if n == 7 else [f"new {n}", f"=old {n}", f"base {n}"]
        answers: list[dict[str, Any]] = [
            {"answer": text, "figures": {"judge": (0.5, 0.0, 1.0)[number]}}
            for number, text in enumerate(texts)
        ]
        if n == 9:
            answers[2] = {"error": "too long", "figures": {}}
        lines.append({"row": n, "messages": [{"role": "user", "content": f"Q{n}?"}], "answers": answers})
    data.file("file-results").write_text("".join(json.dumps(line) + "\n" for line in lines))
    store.files.add(
        id="file-results", filename="e.jsonl", purpose="evaluation-results", size=9, sha256="c" * 64,
        created_at=1.0,
    )  # fmt: skip
    from sqlalchemy import update

    from tunewright.store.tables import jobs

    with store.database.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id == id).values(result={"file": "file-results"}))
    return f"/v1/evaluations/{id}"


def pairs(api: TestClient, evaluation: str, **query: Any) -> list[dict[str, str]]:  # noqa: F811
    answer = api.get(f"{evaluation}/pairs", params=query)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def rate(api: TestClient, evaluation: str, rater: str, choices: dict[str, str]) -> Any:  # noqa: F811
    ratings = [{"id": id, "choice": choice} for id, choice in choices.items()]
    return api.post(f"{evaluation}/ratings", json={"rater": rater, "ratings": ratings})


def test_pairs_are_in_random_order_and_say_not_whose_they_are(api: TestClient, evaluation: str) -> None:  # noqa: F811
    found = pairs(api, evaluation, against=OLD)
    assert len(found) == ROWS - 1, "the same answers are no pair"
    assert {tuple(pair) for pair in found} == {("id", "asked", "a", "b", "choice")}
    assert len({pair["id"] for pair in found}) == len(found)
    places = [int(pair["asked"].strip("Q?")) for pair in found]
    assert places != sorted(places)
    first = Counter("new" in pair["a"] for pair in found)
    assert 15 <= first[True] <= 44, "about half of them are a"
    assert pairs(api, evaluation, against=OLD) == found, "the same again"
    assert pairs(api, evaluation, against=OLD, rows=10) == found[:10]
    both = pairs(api, evaluation)
    assert len(both) == 2 * (ROWS - 1) - 1, "one answer of the base is missing"
    sheet = api.get(f"{evaluation}/pairs", params={"format": "csv", "against": OLD})
    assert sheet.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(sheet.text, newline="")))
    assert [row["id"] for row in rows] == [pair["id"] for pair in found]
    assert not any(cell.startswith("=") for row in rows for cell in row.values()), "no formula"


def test_choices_are_scored_with_intervals(api: TestClient, evaluation: str) -> None:  # noqa: F811
    found = pairs(api, evaluation, against=OLD)

    def prefer(word: str, of: list[dict[str, str]]) -> dict[str, str]:
        return {pair["id"]: "a" if word in pair["a"] else "b" for pair in of}

    answer = rate(api, evaluation, "ann", prefer("new", found[:40]) | {found[40]["id"]: "tie"})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["raters"] == ["ann"]
    (against,) = told["models"]
    assert (against["against"], against["rows"], against["wins"], against["ties"]) == (OLD, 41, 40, 1)
    assert against["win_rate"] == pytest.approx(40.5 / 41)
    assert 0.9 < against["low"] < against["high"] <= 1
    assert (against["conclusion"], against["p_value"] < 0.001) == ("better", True)
    judge = told["agreement"][0]
    assert (judge["first"], judge["second"], judge["rows"]) == ("rater ann", "the judge", 41)
    assert judge["agreement"] == pytest.approx(40 / 41)
    told = rate(api, evaluation, "bob", prefer("old", found[:20]) | prefer("new", found[20:40])).json()
    (against,) = told["models"]
    assert (against["rows"], against["ratings"], against["losses"]) == (41, 81, 20)
    assert against["win_rate"] == pytest.approx((20 * 0.5 + 20 + 0.5) / 41), "a row counts once"
    people = next(one for one in told["agreement"] if one["second"] == "rater bob")
    assert (people["rows"], people["agreement"]) == (40, 0.5)
    again = rate(api, evaluation, "bob", prefer("new", found[:20])).json()
    assert again["models"][0]["losses"] == 0, "a person's later choice replaces the earlier one"
    assert api.get(f"{evaluation}/ratings").json() == again


def test_a_wrong_choice_stores_nothing(api: TestClient, evaluation: str) -> None:  # noqa: F811
    found = pairs(api, evaluation, against=OLD)
    for choices, words in (
        ({found[0]["id"]: "a", "x" * 20: "a"}, "is no pair"),
        ({found[0]["id"]: "c"}, "a"),
    ):
        answer = rate(api, evaluation, "ann", choices)
        assert answer.status_code == 400
        assert words in answer.json()["error"]["message"]
    twice = [{"id": found[0]["id"], "choice": "a"}] * 2
    answer = api.post(f"{evaluation}/ratings", json={"rater": "ann", "ratings": twice})
    assert "rated twice" in answer.json()["error"]["message"]
    assert api.get(f"{evaluation}/ratings").json()["models"] == []
    assert api.get(f"{evaluation}/pairs", params={"against": "none"}).status_code == 400
    assert api.get("/v1/evaluations/eval-none/pairs").status_code == 404


def test_without_answers_or_another_model_there_are_no_pairs(
    api: TestClient,  # noqa: F811
    store: Store,
    evaluation: str,
) -> None:
    alone = add_evaluation(store, CONTENT, report_of(NEW))
    assert "has one model" in api.get(f"/v1/evaluations/{alone}/pairs").json()["error"]["message"]
    failed = add_evaluation(
        store, CONTENT, report_of(NEW, against={OLD: (0.1, 0.0, 0.2)}), state=JobState.FAILED
    )
    answer = api.get(f"/v1/evaluations/{failed}/pairs")
    assert answer.json()["error"]["code"] == "no_answers"


def test_ratings_go_with_their_evaluation(api: TestClient, store: Store, evaluation: str) -> None:  # noqa: F811
    found = pairs(api, evaluation)
    assert rate(api, evaluation, "ann", {found[0]["id"]: "a"}).status_code == 200
    id = evaluation.rpartition("/")[2]
    assert store.jobs.delete(id)
    assert store.ratings.of(id) == []
    assert not store.ratings.put(id, "ann", [])
