"""What OpenAI's clients expect of generations, from the real vLLM: forced tool calls, several choices, error codes."""

from __future__ import annotations

import json
from typing import Any

import httpx
import jsonschema
import pytest

from tests.engine.conftest import Service
from tunewright.config import EMBEDDED_BASE

QUESTION = "What is the weather in Paris?"
HELLO = [{"role": "user", "content": QUESTION}]
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
    "additionalProperties": False,
}
NUMBER = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
}
SCHEMAS: dict[str, dict[str, Any] | None] = {
    "an object": CITY,
    "none": None,
    "no type": {"properties": CITY["properties"]},
    "alternatives": {"anyOf": [NUMBER, {"type": "null"}]},
}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def post(service: Service, path: str, **body: Any) -> httpx.Response:
    body = {"model": EMBEDDED_BASE, "temperature": 0, **body}
    return httpx.post(f"{service.url}/v1{path}", json=body, timeout=120)


def function(schema: dict[str, Any] | None, strict: bool | None) -> dict[str, Any]:
    made: dict[str, Any] = {"name": "get_weather", "description": "The weather of a city."}
    return (
        made
        | ({} if schema is None else {"parameters": schema})
        | ({} if strict is None else {"strict": strict})
    )


def check(arguments: str, schema: dict[str, Any] | None) -> None:
    value = json.loads(arguments)
    assert isinstance(value, dict), arguments
    jsonschema.validate(value, schema or {"maxProperties": 0})


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
@pytest.mark.parametrize("strict", [None, False])
def test_the_arguments_of_a_forced_call_are_an_object_of_the_schema(
    service: Service, name: str, choice: Any, strict: bool | None
) -> None:
    schema = SCHEMAS[name]
    body = {
        "messages": HELLO, "tool_choice": choice, "max_tokens": 80,
        "tools": [{"type": "function", "function": function(schema, strict)}],
    }  # fmt: skip
    calls = post(service, "/chat/completions", **body).json()["choices"][0]["message"]["tool_calls"]
    for call in calls:
        assert call["function"]["name"] == "get_weather"
        check(call["function"]["arguments"], schema)
    events = post(service, "/chat/completions", **body, stream=True).text.split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]
    parts = [part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls") or []]
    first = [part["function"].get("arguments", "") for part in parts if part["index"] == 0]
    check("".join(first), schema)


def test_the_prompt_of_a_forced_call_is_that_of_a_free_one(service: Service) -> None:
    """It is the one that training knows, whether the client or the gateway made the function strict."""
    asked = [("auto", None), ("required", None), (NAMED, False), ("auto", True)]
    numbers = set()
    for choice, strict in asked:
        tools = [{"type": "function", "function": function(CITY, strict)}]
        body = {"messages": HELLO, "tools": tools, "tool_choice": choice, "max_tokens": 1}
        numbers.add(post(service, "/chat/completions", **body).json()["usage"]["prompt_tokens"])
    assert len(numbers) == 1


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "name": "get_weather"}], ids=["required", "named"]
)
def test_so_are_those_of_a_response(service: Service, choice: Any) -> None:
    tools = [{"type": "function", **function(CITY, False)}]
    answer = post(
        service, "/responses", input=QUESTION, tools=tools, tool_choice=choice, max_output_tokens=80
    ).json()
    calls = [item for item in answer["output"] if item["type"] == "function_call"]
    assert calls
    for call in calls:
        check(call["arguments"], CITY)


def test_several_choices_at_temperature_0_are_all_the_one_of_a_single_choice(service: Service) -> None:
    body: dict[str, Any] = {"messages": HELLO, "max_tokens": 12, "logprobs": True}
    one = post(service, "/chat/completions", **body).json()["choices"]
    three = post(service, "/chat/completions", **body, n=3).json()["choices"]
    assert [choice["index"] for choice in three] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in three} == {one[0]["message"]["content"]}
    numbers = [[token["logprob"] for token in choice["logprobs"]["content"]] for choice in (one[0], *three)]
    assert all(row == pytest.approx(numbers[0], abs=0.05) for row in numbers)


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("/chat/completions", {"messages": [{"role": "user", "content": "word " * 3000}]}, "context_length_exceeded",
         "messages"),
        ("/completions", {"prompt": "word " * 3000}, "context_length_exceeded", "prompt"),
        ("/completions", {"prompt": [1] * 3000}, "context_length_exceeded", "prompt"),
        ("/responses", {"input": "word " * 3000}, "context_length_exceeded", "input"),
        ("/chat/completions", {"messages": [{"role": "user", "content": None}]}, "invalid_value", "messages.0.content"),
        ("/chat/completions", {"messages": None}, "invalid_value", "messages"),
        ("/chat/completions", {}, "missing_parameter", "messages"),
        ("/chat/completions", {"messages": HELLO, "temperature": "hot"}, "invalid_value", "temperature"),
        ("/chat/completions", {"messages": HELLO, "n": 0}, "invalid_value", "n"),
        ("/chat/completions", {"messages": HELLO, "tool_choice": "required", "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {
                "a": {"type": "strin"}}}}}]}, "invalid_value", "tools"),
        ("/completions", {"prompt": "a", "suffix": "b"}, "unsupported", "suffix"),
    ],
)  # fmt: skip
def test_a_refusal_has_openai_s_code_and_a_parameter_of_the_request(
    service: Service, path: str, body: dict[str, Any], code: str, param: str
) -> None:
    answer = post(service, path, **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param), error
    assert not any(
        part in error["message"] for part in ("None", "{'", "(parameter=", "input_value", "body.")
    ), error
