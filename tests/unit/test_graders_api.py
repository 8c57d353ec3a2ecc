"""The routes of graders, as clients call them, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.test_api import Make, api, built, error, make, worker  # noqa: F401

from tunewright.api.http.access import Principal
from tunewright.errors import EngineUnavailable, NotFound
from tunewright.store.limits import Limits

RUN, VALIDATE = "/v1/fine_tuning/alpha/graders/run", "/v1/fine_tuning/alpha/graders/validate"
ANSWER = "{{ sample.output_text }}"
EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": ANSWER,
    "reference": "{{item.a}}",
    "operation": "eq",
}
JUDGE = {
    "type": "score_model",
    "name": "judge",
    "model": "m",
    "input": [{"role": "user", "content": f"{{{{item.a}}}} or {ANSWER}?"}],
}


def multi(**graders: Any) -> dict[str, Any]:
    return {"type": "multi", "name": "all", "graders": graders, "calculate_output": " + ".join(graders)}


def run(api: TestClient, grader: Any, answer: str = "x", **more: Any) -> Any:  # noqa: F811
    return api.post(RUN, json={"grader": grader, "model_sample": answer, **more})


def test_a_run_answers_as_openai_does(api: TestClient) -> None:  # noqa: F811
    one = run(
        api, multi(exact=EXACT, r={"type": "regex", "name": "r", "pattern": "^x"}), item={"a": "y"}
    ).json()
    assert (one["reward"], one["sub_rewards"]) == (1.0, {"exact": 0.0, "r": 1.0})
    assert one["metadata"]["execution_time"] > 0
    assert (one["metadata"]["name"], one["metadata"]["type"]) == ("all", "multi")
    assert not any(one["metadata"]["errors"].values())
    wrong = run(api, EXACT).json()
    assert wrong["reward"] == 0
    assert wrong["metadata"]["errors"]["invalid_variable_error"] is True
    assert "item.a" in wrong["metadata"]["errors"]["other_error_details"]


@pytest.mark.parametrize(
    ("grader", "param"),
    [
        ({**EXACT, "operation": "equals"}, "grader.operation"),
        ({**EXACT, "input": "{{ items.x }}"}, "grader.input"),
        ({**EXACT, "threshold": 1}, "grader.threshold"),
        ({**EXACT, "type": "label_model"}, "grader"),
        ({**EXACT, "name": "x" * 65}, "grader.name"),
        ({"type": "text_similarity", "name": "n", "input": "", "reference": "", "evaluation_metric": "meteor"},
         "grader"),
        ({"type": "regex", "name": "n", "pattern": "("}, "grader.pattern"),
        ({"type": "python", "name": "n", "source": "def grade(s, i): return 1"}, "grader"),
        (multi(exact={**EXACT, "operation": "x"}), "grader.graders.exact.operation"),
        (multi(regex={**EXACT, "reference": "{{"}), "grader.graders.regex.reference"),
        ({**multi(a=EXACT), "calculate_output": "b"}, "grader"),
        ({**multi(a=EXACT), "graders": {**EXACT, "operation": "x"}}, "grader.graders.operation"),
        ({**JUDGE, "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
         "grader.input.0.content"),
        ({**JUDGE, "range": [1, 0]}, "grader"),
        ({**JUDGE, "sampling_params": {"reasoning_effort": "high"}}, "grader.sampling_params.reasoning_effort"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_grader_is_named(api: TestClient, grader: Any, param: str) -> None:  # noqa: F811
    for answer in (api.post(VALIDATE, json={"grader": grader}), run(api, grader)):
        assert error(answer, 400)["param"] == param


def test_what_is_sent_is_bounded(api: TestClient) -> None:  # noqa: F811
    assert error(run(api, EXACT, "x" * 262_145), 400)["param"] == "model_sample"
    assert error(run(api, EXACT, item={"a": "x" * 1_048_576}), 400)["param"] == "item"
    deep: Any = "x"
    for _ in range(70):
        deep = [deep]
    assert "levels deep" in error(run(api, EXACT, item={"a": deep}), 400)["message"]
    for text in (b'"\\ud800"', b'"\\u0000"', b"1e999"):
        body = b'{"grader": {"type": "json_schema", "name": "s", "json_schema": {"enum": [%s]}}}' % text
        answer = api.post(VALIDATE, content=body, headers={"content-type": "application/json"})
        assert error(answer, 400)["param"] == "grader"
    for text in (
        b'"\\\\u0000"',
        b'"\\\\\\\\u0000"',
    ):  # one and two backslashes in a text, and no such character
        body = b'{"grader": {"type": "json_schema", "name": "s", "json_schema": {"enum": [%s]}}}' % text
        answer = api.post(VALIDATE, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 200, answer.text
    assert error(run(api, EXACT, item=["a"]), 400)["param"] == "item"
    many = {f"g{number}": EXACT for number in range(17)}
    assert error(run(api, multi(**many)), 400)["param"] == "grader.graders"
    schema = {"type": "json_schema", "name": "s", "json_schema": {"enum": ["x" * 64_000]}}
    assert error(run(api, schema), 400)["param"] == "grader"


def asking(api: TestClient, answer: Any) -> list[dict[str, Any]]:  # noqa: F811
    """Make the gateway answer so, or raise that; what it is asked is in the list."""
    asked = []

    async def ask(body: dict[str, Any], project: str, key: str | None) -> tuple[int, bytes]:
        assert project == "default"
        asked.append(body)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    state = api.app.state  # type: ignore[attr-defined]
    state.context = replace(state.context, ask_by_name=ask)
    return asked


def test_a_model_grades_through_the_gateway(api: TestClient) -> None:  # noqa: F811
    completion = (
        b'{"choices": [{"message": {"content": "{\\"result\\": 0.25}"}}], "usage": {"total_tokens": 7}}'
    )
    asked = asking(api, (200, completion))
    found = run(api, multi(judge=JUDGE, exact=EXACT), "x", item={"a": "x"}).json()
    assert (found["reward"], found["sub_rewards"]) == (1.25, {"judge": 0.25, "exact": 1.0})
    assert found["model_grader_token_usage_per_model"] == {"m": 7}
    assert (found["metadata"]["token_usage"], found["metadata"]["sampled_model_name"]) == (7, "m")
    assert [body["messages"][0]["content"] for body in asked] == ["x or x?"]


def test_a_run_with_models_is_a_generation_of_its_project(
    api: TestClient,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limited = (("project p", Limits(tokens_per_minute=5)),)
    monkeypatch.setattr(Principal, "limited", property(lambda _: limited))
    asking(api, (200, b'{"choices":[],"usage":{"prompt_tokens":30,"completion_tokens":4}}'))
    assert run(api, JUDGE, "x", item={"a": "x"}).status_code == 200
    assert error(run(api, JUDGE, "x", item={"a": "x"}), 429)["code"] == "rate_limit_exceeded"
    assert run(api, EXACT).status_code == 200


def test_a_model_that_cannot_be_asked_is_told(api: TestClient) -> None:  # noqa: F811
    for answer in (EngineUnavailable("It starts."), TimeoutError(), (500, b"it broke")):
        asking(api, answer)
        found = run(api, JUDGE, "x", item={"a": "x"}).json()
        assert found["reward"] == 0
        assert found["metadata"]["errors"]["model_grader_server_error"] is True
        assert found["metadata"]["errors"]["model_grader_server_error_details"]
    asking(api, NotFound("No such model: 'm'.", param="model", code="model_not_found"))
    assert error(run(api, JUDGE, "x", item={"a": "x"}), 404)["code"] == "model_not_found"


def test_the_operator_may_allow_programs(make: Make) -> None:  # noqa: F811
    api = make(python_graders="unconfined")  # noqa: F811
    program = {"type": "python", "name": "p", "source": "def grade(sample, item):\n    return len(item['a'])"}
    assert run(api, program, item={"a": "xyz"}).json()["reward"] == 3
    wrong = api.post(VALIDATE, json={"grader": {**program, "source": "def grade(: pass"}})
    assert error(wrong, 400)["param"] == "grader.source"
    assert "line 1" in wrong.json()["error"]["message"]
