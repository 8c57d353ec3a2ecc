"""What one generation may ask for, and what is refused before the engine sees it."""

from __future__ import annotations

from typing import Any

import pytest

from tunewright.api.gateway.limits import check_limits
from tunewright.errors import InvalidRequest

CONTEXT = 1024
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}


def refusal(body: dict[str, Any], most_tokens: int | None = None) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        check_limits(body, CONTEXT, most_tokens)
    assert len(str(refused.value)) < 400
    return refused.value


LONG = "x" * (CONTEXT * 32 + 1)


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("prompt", {"prompt": LONG}),
        ("prompt", {"prompt": ["short", LONG]}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG}]}]}),
        ("messages", {"messages": [{"role": "user", "content": LONG[:20_000]}] * 2}),
        ("input", {"input": LONG}),
        ("tools", {**HELLO, "tools": [{"type": "function", "function": {"name": "f", "description": LONG}}]}),
        (None, {"prompt": ["x" * 30_000] * 100}),
    ],
)
def test_text_that_no_context_holds_is_refused(param: str | None, body: dict[str, Any]) -> None:
    error = refusal(body)
    assert (error.code, error.param) == ("context_length_exceeded", param)


def test_text_within_the_context_is_left_to_the_engine() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + LONG}}
    for body in (
        HELLO,
        {"prompt": LONG[:-1]},
        {"prompt": ["x" * 1000] * 100},
        {"prompt": [1] * 100_000},
        {"messages": [{"role": "user", "content": [image]}]},
        {"prompt": 7, "messages": "no list", "n": "many", "tools": {}, "response_format": []},
    ):
        check_limits(body, CONTEXT, None)
    check_limits({"prompt": LONG}, None, None)  # an engine whose context is not known


@pytest.mark.parametrize(
    "body",
    [
        {"n": 33},
        {"n": 128, "max_tokens": 1000},
        {"n": 10_000, "max_completion_tokens": 16, "max_tokens": 1},
        {"best_of": 40, "max_tokens": 1024},
        {"n": 2**70, "max_tokens": 1},
    ],
)
def test_choices_times_tokens_are_limited(body: dict[str, Any]) -> None:
    assert refusal({**HELLO, **body}).param == "n"


def test_the_operator_sets_how_many_tokens_one_request_may_ask_for() -> None:
    check_limits({**HELLO, "n": 10, "max_tokens": 10}, CONTEXT, 100)
    assert "--max-generated-tokens" in str(refusal({**HELLO, "n": 11, "max_tokens": 10}, 100))
    check_limits({**HELLO, "n": 1}, CONTEXT, 100)  # one answer may fill the context
    check_limits({**HELLO, "n": 128, "max_tokens": 16}, CONTEXT, None)


def schema(**fields: Any) -> dict[str, Any]:
    inner = {"type": "object", "properties": {"a": {"type": "string", **fields}}}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": inner}}}


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("structured_outputs", {"structured_outputs": {"regex": "a{1,100000}"}}),
        ("structured_outputs", {"structured_outputs": {"regex": "a{" + "9" * 5000 + "}"}}),
        ("structured_outputs", {"structured_outputs": {"regex": "a" * 3000}}),
        ("structured_outputs", {"structured_outputs": {"choice": ["a"] * 1001}}),
        ("structured_outputs", {"structured_outputs": {"choice": ["a" * 1001]}}),
        ("structured_outputs", {"structured_outputs": {"grammar": 'root ::= "a"{20000}'}}),
        ("structured_outputs", {"structured_outputs": {"grammar": "x" * 70_000}}),
        ("response_format", schema(pattern="(a{1,99999})")),
        ("response_format", schema(maxLength=10**9)),
        ("response_format", schema(minItems=1e12)),
        ("response_format", schema(enum=[str(n) for n in range(2000)])),
        ("response_format", schema(description="x" * 70_000)),
        ("tools", {"tools": [{"function": {"name": "f", "parameters": {"pattern": "a{1,20000}"}}}]}),
        ("tools", {"tools": [{"function": {"name": "f", "description": "x" * 5000}}] * 60}),
    ],
)
def test_grammars_are_bounded(param: str, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_limits({**HELLO, **body}, 2**20, None)
    assert refused.value.param == param
    assert len(str(refused.value)) < 400


def test_usual_grammars_are_taken() -> None:
    for body in (
        schema(pattern="^[a-z]{2,40}$", maxLength=200, enum=["a", "b"]),
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"structured_outputs": {"regex": "[0-9]{3}-[0-9]{4}"}},
        {"structured_outputs": None, "response_format": {"type": "json_object"}},
        {
            "tools": [
                {"type": "function", "function": {"name": f"f{n}", "parameters": {}}} for n in range(200)
            ]
        },
    ):
        check_limits({**HELLO, **body}, CONTEXT * 8, None)
