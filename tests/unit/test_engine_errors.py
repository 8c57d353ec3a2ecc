"""vLLM's refusals, as its version 0.32 words them, in the API's form."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tunewright.api.gateway.engine_errors import engine_error
from tunewright.api.gateway.routing import Target
from tunewright.api.gateway.sampling import with_greedy_choices
from tunewright.errors import TunewrightError

CHAT, COMPLETION, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
HELLO = [{"role": "user", "content": "hi"}]
TARGET = Target("", "base-1", "tiny", None)


def told(
    message: str, param: str | None, path: str, body: dict[str, Any], status: int = 400
) -> TunewrightError:
    answer = json.dumps({"error": {"message": message, "param": param}}).encode()
    return engine_error(status, answer, TARGET, path, {"model": "tiny", **body})


def fault(type: str, location: str, message: str, given: str) -> str:
    return f"  {{'type': '{type}', 'loc': 'body.{location}', 'msg': \"{message}\", 'input': '{given}'}}"


def validation(*faults: str) -> str:
    return "\n".join([f"{len(faults)} validation error{'s' * (len(faults) > 1)}:", *faults])


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": HELLO}, "messages"),
        (COMPLETION, {"prompt": "a"}, "prompt"),
        (RESPONSE, {"input": "a"}, "input"),
        ("/tokenize", {"messages": HELLO}, "messages"),
        ("/v1/embeddings", {"input": "a"}, "input"),
    ],
)
@pytest.mark.parametrize(
    ("message", "given"),
    [
        (
            "This model's maximum context length is 1024 tokens. However, your prompt contains 15050 characters "
            "(more than 13312 characters, which is the upper bound for 1024 input tokens). Please reduce the length "
            "of the input prompt. (parameter=input_text, value=15050)",
            "input_text",
        ),
        ("The decoder prompt (length 9) is longer than the maximum model length of 8. Make sure ...", None),
    ],
)
def test_a_text_that_is_too_long_has_openai_s_code(
    path: str, body: dict[str, Any], param: str, message: str, given: str | None
) -> None:
    error = told(message, given, path, body)
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", param)
    assert "parameter=" not in error.message


DEVELOPER, USER = (f"messages.0.ChatCompletion{role}MessageParam" for role in ("Developer", "User"))
ROLES = validation(
    fault("string_type", f"{DEVELOPER}.content", "Input should be a valid string", "None"),
    fault("literal_error", f"{DEVELOPER}.role", "Input should be 'developer'", "user"),
    fault("string_type", f"{USER}.content", "Input should be a valid string", "None"),
    fault("iterable_type", f"{USER}.content", "Input should be iterable", "None"),
    "  {'type': 'literal_error', 'loc': 'body.messages.0.ChatCompletionSystemMes...[truncated]",
)
PARTS = """2 validation errors for ValidatorIterator
0.ChatCompletionContentPartTextParam.text
  Field required [type=missing, input_value={'type': 'x'}, input_type=dict]
    For further information visit https://errors.pydantic.dev/2.14/v/missing
0.ChatCompletionContentPartImageParam.image_url
  Field required [type=missing, input_value={'type': 'x'}, input_type=dict]
    For further information visit https://errors.pydantic.dev/2.14/v/missing"""
SUFFIX = "suffix is only supported for models with FIM completion rendering"

REFUSALS: dict[str, tuple[str, str | None, dict[str, Any], str, str, str | None]] = {
    "of several types, the one that the value claims to be": (
        ROLES, f"body.{DEVELOPER}.content", {"messages": [{"content": None}]},
        "Invalid messages.0.content: input should be a valid string; or input should be a list.",
        "invalid_value", "messages.0.content",
    ),
    "the parts of a content": (
        PARTS, None, {"messages": [{"role": "user", "content": [{"type": "x"}]}]},
        "Invalid messages: in the parts of a content, 0.text: field required.", "invalid_value", "messages",
    ),
    "a wrong type": (
        validation(fault("float_parsing", "temperature", "Input should be a valid number", "hot")),
        "body.temperature", {"temperature": "hot"},
        "Invalid temperature: input should be a valid number.", "invalid_value", "temperature",
    ),
    "older versions": (
        "1 validation error:\n  {'type': 'int_type', 'loc': ('body', 'seed'), 'msg': 'Not an integer'}",
        None, {"seed": "a"}, "Invalid seed: not an integer.", "invalid_value", "seed",
    ),
    "something is missing": (
        "1 validation error:\n  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required', "
        "'input': '<dict of 1 items>'}",
        "body.messages", {}, "Missing parameter: messages.", "missing_parameter", "messages",
    ),
    "a message that names its parameter at the end": (
        "top_p must be in (0, 1], got 5.0. (parameter=top_p, value=5.0)", "top_p", {"top_p": 5},
        "top_p must be in (0, 1], got 5.0.", "invalid_value", "top_p",
    ),
    "a message that names a part of its parameter at the end": (
        "`None` is none! (parameter=tool_choice.function)", "tool_choice.function", {"tool_choice": {}},
        "`None` is none!", "invalid_value", "tool_choice.function",
    ),
    "a message with a dict of Python's": (
        "You must use one kind of structured outputs constraint but none are specified: {'json': None, 'regex': None}",
        None, {"response_format": {}},
        "You must use one kind of structured outputs constraint but none are specified", "invalid_value", None,
    ),
    "a message that names its parameter only in words": (
        "frequency_penalty must be in [-2, 2], got 9.0.", None, {"frequency_penalty": 9},
        "frequency_penalty must be in [-2, 2], got 9.0.", "invalid_value", "frequency_penalty",
    ),
    "a parameter that the request does not have": (
        "it cannot be", "prompt_token_ids", {}, "it cannot be", "invalid_value", None,
    ),
    "a text of Python's": (
        "'NoneType' object is not iterable", None, {"messages": None},
        "A value of the request has a type that the engine does not take.", "invalid_value", "messages",
    ),
    "an image": (
        "base-1 is not a multimodal model", None, {"messages": HELLO},
        "tiny is not a multimodal model", "unsupported", "messages",
    ),
    "what vLLM does not support": (SUFFIX, "suffix", {"suffix": "b"}, SUFFIX, "unsupported", "suffix"),
    "a role": ("Unknown role: x", None, {"messages": HELLO}, "Unknown role: x", "invalid_value", "messages"),
    "tools without a parser": (
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set', None, {"tools": [{}]},
        "No parser is known for the tool calls of tiny: start the service with --tool-call-parser.",
        "unsupported", "tools",
    ),
    "a schema without a grammar": (
        "Invalid grammar specification: 'triggers'", None, {"tools": [{}]},
        "The engine cannot make a grammar of the `parameters` of a function in `tools`, which the arguments of a "
        "forced call must follow: look at types, references and limits that no value meets.", "invalid_value", "tools",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_names_what_the_request_has_in_words_that_are_no_python(name: str) -> None:
    message, param, body, expected, code, expected_param = REFUSALS[name]
    error = told(message, param, CHAT, body)
    assert (error.message, error.code, error.param) == (expected, code, expected_param)


@pytest.mark.parametrize(
    "message", ["x" * 3_000_000, " (parameter=" * 300_000, " " * 3_000_000, "'" * 100_000]
)
def test_a_message_that_quotes_a_large_body_is_cut(message: str) -> None:
    assert len(told(message, None, CHAT, {}).message) < 2100
    faults = validation(*["  {'type': 'x', 'loc': 'body.a', 'msg': '" + message + "'}"] * 3)
    assert len(told(faults, None, CHAT, {}).message) < 2100


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-7])
def test_several_choices_at_temperature_0_are_each_the_likeliest(temperature: float) -> None:
    body = {"n": 3, "temperature": temperature, "top_k": 5, "seed": 1}
    assert with_greedy_choices(body) == {"n": 3, "temperature": 1.0, "top_k": 1, "seed": 1}


@pytest.mark.parametrize(
    "body",
    [
        {"n": 1, "temperature": 0}, {"temperature": 0}, {"n": 2, "temperature": 0.5}, {"n": 2},
        {"n": 2, "temperature": None}, {"n": "2", "temperature": 0}, {"n": 2, "temperature": "0"},
        {"n": 2, "temperature": -1}, {"n": 2, "temperature": 0, "use_beam_search": True},
    ],
)  # fmt: skip
def test_other_requests_are_sampled_as_they_say(body: dict[str, Any]) -> None:
    assert with_greedy_choices(body) == body


LONG = {
    "a name of letters": validation(
        fault("extra_forbidden", "vllm_xargs.Za" + "list" * 4500 + "_", "no", "x")
    ),
    "values in values": "(parameter=a, value=" * 950 + "x",
    "ends of values": "(parameter=a, value=)" * 900 + "x",
    "spaces": "(parameter=a, value=" + ")" + " " * 19_000 + "x",
    "ends and spaces": ("(parameter=a, value=" + ")  " * 30) * 170 + "x",
    "pydantic's own": "1 validation error for X\n" + "a\n  " + "b [type=" * 2400,
    "its lines": "1 validation error for X\n" + "a\n  b [type=c" * 1500,
}


@pytest.mark.parametrize("name", LONG)
def test_no_message_takes_long_to_read(name: str) -> None:
    """A message quotes what was sent, and is read in the event loop."""
    began = time.process_time()
    told(LONG[name], None, CHAT, {"messages": HELLO})
    assert time.process_time() - began < 0.2, "less than what is logged as a block of the event loop"
