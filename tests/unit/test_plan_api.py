"""`POST /v1/fine_tuning/plan`, as a client calls it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.test_api import BASE, api, built, make, upload, worker  # noqa: F401

from counted import count_here
from tunewright.kinds.fine_tuning import planning

ROWS = [{"question": f"{number} and 1?", "answer": str(number + 1)} for number in range(40)]
COLUMNS = {"prompt": "question", "completion": "answer"}


def plan(api: TestClient, content: bytes, **body: Any) -> Any:  # noqa: F811
    file = upload(api, content)
    return api.post("/v1/fine_tuning/plan", json={"model": BASE, "training_file": file, **body})


def test_a_plan_counts_the_tokens_of_the_file_as_it_will_be_read(
    api: TestClient,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = plan(api, json.dumps(ROWS).encode(), data={"columns": COLUMNS}, machine="L4")
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert (made["object"], made["rows"], made["machine"]) == ("fine_tuning.plan", 40, "L4-24GB")
    assert made["tokens"] > 40 * 4
    assert {method["type"] for method in made["methods"]} == {"full", "lora", "qlora"}
    assert all(method["memory"]["total"] > 0 for method in made["methods"])
    assert made["fits"] is True
    assert {option["name"] for option in made["options"]} >= {"learning_rate", "rank", "n_epochs"}
    count_here(monkeypatch)
    held_out = plan(api, json.dumps(ROWS).encode(), data={"columns": COLUMNS, "validation_share": 0.5})
    assert 0 < held_out.json()["rows"] < 40


def test_rows_with_nothing_left_to_learn_are_in_no_step_and_no_token(
    api: TestClient,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count_here(monkeypatch)
    tuning = {"max_length": 16, "batch_size": 32, "n_epochs": 1}

    def planned(rows: list[dict[str, str]]) -> tuple[int, int, int]:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        made = plan(api, content, tuning=tuning, machine="L4").json()
        return made["rows"], made["tokens"], made["steps"]

    short = [{"prompt": f"{number}?", "completion": "one"} for number in range(64)]
    rows, tokens, steps = planned(short)
    assert (rows, steps) == (64, 2)
    long = [{"prompt": "word " * (50 + number), "completion": "one"} for number in range(64)]
    assert planned(short + long) == (128, tokens, steps), "the prompts alone are longer than 16 tokens"


def test_a_file_that_takes_long_is_estimated_from_its_first_rows(
    api: TestClient,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [{"prompt": f"{number:04}?", "completion": "one " * 20} for number in range(8_000)]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    count_here(monkeypatch)
    with monkeypatch.context() as hurried:
        hurried.setattr(planning, "PLANNED_IN", 0.0)
        estimated = plan(api, content, machine="L4").json()
        renamed = content.replace(b'"prompt"', b'"question"').replace(b'"completion"', b'"answer"')
        refused = plan(api, renamed, data={"columns": COLUMNS})
    assert 0 < estimated["counted_rows"] < 8_000
    assert estimated["rows"] == 8_000
    exact = plan(api, content, machine="L4").json()
    assert exact["counted_rows"] is None
    assert estimated["tokens"] == pytest.approx(exact["tokens"], rel=0.05)
    assert estimated["steps"] == pytest.approx(exact["steps"], rel=0.01)
    assert refused.status_code == 400, "how many rows it has is not known"
    assert "took more than 0 s" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "no-such-base"}, "model"),
        ({"machine": "a card of 1999"}, "machine"),
        ({"chat_template": "{% for %}"}, "chat_template"),
        ({"tuning": {"rank": 0}}, "tuning.rank"),
    ],
)
def test_what_is_wrong_is_named(api: TestClient, body: dict[str, Any], param: str) -> None:  # noqa: F811
    answer = plan(api, b'{"prompt": "a", "completion": "b"}\n', **body)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param
