"""What one generation may ask for, and what is refused before the engine sees it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params as response_params

from tunewright.api.gateway.limits import check_limits
from tunewright.api.gateway.parameters import PARAMETERS
from tunewright.api.gateway.routing import Target
from tunewright.api.gateway.turns import sequences
from tunewright.api.gateway.upstream import upstream_body
from tunewright.errors import InvalidRequest
from tunewright.imports import without_compiler

CONTEXT = 1024
TARGET = Target("", "base-1", "tiny", None)
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}


def refusal(body: dict[str, Any], most_tokens: int | None = None) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        check_limits(body, CONTEXT, most_tokens)
    assert len(str(refused.value)) < 400
    return refused.value


CHAT, TEXT, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"


@pytest.mark.parametrize(
    ("path", "param", "value"),
    [
        (CHAT, "functions", [{"name": "f"}]),
        (CHAT, "function_call", {"name": "f"}),
        (CHAT, "tool_choice", {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}),
        (CHAT, "modalities", ["text", "audio"]),
        (CHAT, "audio", {"voice": "alloy", "format": "wav"}),
        (CHAT, "web_search_options", {}),
        (CHAT, "guided_json", {"type": "object"}),
        (CHAT, "best_of", 5),
        (TEXT, "best_of", 5),
        (TEXT, "guided_choice", ["a"]),
        (RESPONSE, "conversation", "conv_1"),
        ("/v1/embeddings", "encoding_format", "bytes"),
        (RESPONSE, "tools.1.type", [{"type": "function"}, {"type": "web_search"}]),
    ],
)
def test_what_the_engine_would_leave_out_without_a_word_is_refused(path: str, param: str, value: Any) -> None:
    """Seen with vLLM 0.32: each was answered as if it had not been sent."""
    with pytest.raises(InvalidRequest) as refused:
        upstream_body(path, {"model": "m", param.partition(".")[0]: value}, TARGET, None)
    assert (refused.value.code, refused.value.param) == ("unsupported", param)


def test_what_asks_for_nothing_is_sent_on() -> None:
    """Clients write null where nothing was asked for, and hints are no promises."""
    nothing = {
        "functions": None, "function_call": None, "modalities": ["text"], "audio": None, "web_search_options": None,
        "guided_json": None, "best_of": 2, "n": 2, "store": True, "metadata": {"a": "b"}, "service_tier": "flex",
        "tool_choice": {"type": "function", "function": {"name": "f"}}, "moderation": None, "conversation": None,
    }  # fmt: skip
    for path in (CHAT, TEXT, RESPONSE):
        known = {name: value for name, value in nothing.items() if value is None or name in PARAMETERS[path]}
        upstream_body(path, {"model": "m", **known}, TARGET, None)


@pytest.mark.parametrize(
    ("path", "name", "like"),
    [
        (CHAT, "max_token", "max_tokens"),
        (TEXT, "messages", ""),
        (RESPONSE, "max_tokens", "max_output_tokens"),
    ],
)
def test_a_parameter_that_nobody_knows_is_refused_with_what_is_like_it(
    path: str, name: str, like: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        upstream_body(path, {"model": "m", name: 5}, TARGET, None)
    assert (refused.value.code, refused.value.param) == ("unknown_parameter", name)
    assert str(refused.value).endswith(f"Did you mean {like}?" if like else "'.")
    upstream_body(path, {"model": "m", name: None}, TARGET, None)


def test_what_vllm_and_the_openai_package_know_is_known() -> None:
    """Of the installed ones."""
    with without_compiler():
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest
        from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    for path, engine, client in (
        (CHAT, ChatCompletionRequest, chat_params.CompletionCreateParamsBase),
        (TEXT, CompletionRequest, text_params.CompletionCreateParamsBase),
        (RESPONSE, ResponsesRequest, response_params.ResponseCreateParamsBase),
    ):
        names = {*engine.model_fields, *client.__annotations__, "stream"}
        assert {name for name in names if not name.startswith("_")} <= PARAMETERS[path]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream": True, "stream_options": {"include_usage": "no"}}, "stream_options.include_usage"),
    ],
)
def test_what_vllm_takes_for_a_boolean_is_refused(body: dict[str, Any], param: str) -> None:
    """The usage of such a stream would not be told."""
    with pytest.raises(InvalidRequest) as refused:
        upstream_body(CHAT, {"model": "m", **body}, TARGET, None)
    assert refused.value.param == param


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


@pytest.mark.parametrize("n", ["10000", 10_000.0, " 10000 "])
def test_a_number_of_choices_is_read_as_the_engine_reads_it(n: Any) -> None:
    """vLLM takes numbers as text and whole decimal numbers too."""
    assert refusal({**HELLO, "n": n, "max_tokens": 16}).param == "n"
    assert refusal({**HELLO, "n": 100, "max_tokens": str(CONTEXT)}).param == "n"
    assert sequences({"n": n}) == 10_000


def test_the_prompts_of_a_completion_count_as_choices_do() -> None:
    assert refusal({"prompt": ["a"] * 100, "max_tokens": 1000}).param == "prompt"
    assert refusal({"prompt": [[1]] * 100, "n": 10, "max_tokens": 100}).param == "prompt"
    for usual in (
        {"prompt": ["a"] * 256, "max_tokens": 1, "echo": True, "logprobs": 1},  # as lm-eval scores
        {"prompt": ["a"] * 1000},  # 16 tokens each, as vLLM has it
        {"prompt": [1] * 1000, "max_tokens": 1000},  # one prompt of tokens
        {"prompt": ["a"] * 8, "max_tokens": 256},
    ):
        check_limits(usual, CONTEXT, None)


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("stop", [f"s{n}" for n in range(129)]),
        ("stop", ["x" * 1001]),
        ("stop", "x" * 1001),
        ("bad_words", ["x"] * 257),
        ("stop_token_ids", [1] * 1025),
        ("logit_bias", {str(n): 1 for n in range(2049)}),
        ("repetition_detection", {"max_pattern_size": 10_000, "min_pattern_size": 5000, "min_count": 2}),
        ("repetition_detection", {"max_pattern_size": "10000", "min_count": 2}),
    ],
)
def test_what_the_engine_looks_through_for_each_token_is_bounded(param: str, value: Any) -> None:
    assert refusal({**HELLO, param: value}).param == param


def test_usual_stops_and_biases_are_taken() -> None:
    for body in (
        {"stop": "\n"},
        {"stop": ["\n", "User:"], "stop_token_ids": [1, 2], "bad_words": ["no"], "logit_bias": {"5": -100}},
        {"repetition_detection": {"max_pattern_size": 20, "min_pattern_size": 2, "min_count": 4}},
        {"stop": None, "bad_words": 7, "logit_bias": [], "repetition_detection": "x"},
    ):
        check_limits({**HELLO, **body}, CONTEXT, None)


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


@pytest.mark.parametrize("key", ["json", "structural_tag"])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"type": "string", "pattern": "a{1,100000}"}),
        json.dumps({"type": "array", "minItems": 10**9}),
        '{"type": "array", "items": ' * 400 + "{}" + "}" * 400,  # 2,700 levels take half an hour to compile
        "[" * 60_000,
    ],
)
def test_a_schema_that_is_sent_as_text_has_the_same_bounds(key: str, text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_limits({**HELLO, "structured_outputs": {key: text}}, 2**20, None)
    assert refused.value.param == "structured_outputs"


def test_usual_grammars_are_taken() -> None:
    for body in (
        schema(pattern="^[a-z]{2,40}$", maxLength=200, enum=["a", "b"]),
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"structured_outputs": {"regex": "[0-9]{3}-[0-9]{4}"}},
        {
            "structured_outputs": {
                "json": json.dumps({"type": "object", "properties": {"a": {"type": "string"}}})
            }
        },
        {"structured_outputs": {"json": "no JSON"}},
        {"structured_outputs": None, "response_format": {"type": "json_object"}},
        {
            "tools": [
                {"type": "function", "function": {"name": f"f{n}", "parameters": {}}} for n in range(200)
            ]
        },
    ):
        check_limits({**HELLO, **body}, CONTEXT * 8, None)
