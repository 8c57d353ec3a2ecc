"""What the gateway sends to the engine where a request forces a tool call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fake_engine import Client, engine_at, gateway_for, say_hello
from tunewright.api.gateway.proxy import Relay
from tunewright.api.gateway.tools import with_strict_tools
from tunewright.errors import InvalidRequest
from tunewright.store.records import Engine
from tunewright.store.store import Store

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NOTHING = {"type": "object", "properties": {}}
NAMED = {"type": "function", "function": {"name": "f"}}


def chat(function: dict[str, Any], choice: Any = "required") -> dict[str, Any]:
    return {"tool_choice": choice, "tools": [{"type": "function", "function": {"name": "f", **function}}]}


def sent_function(function: dict[str, Any], choice: Any = "required") -> dict[str, Any]:
    body = chat(function, choice)
    before = json.dumps(body)
    sent = with_strict_tools(body)["tools"][0]["function"]
    assert json.dumps(body) == before, "the request itself is not changed"
    return dict(sent)


@pytest.mark.parametrize("strict", [{}, {"strict": False}, {"strict": None}, {"strict": True}])
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_the_function_of_a_forced_call_is_strict(choice: Any, strict: dict[str, Any]) -> None:
    sent = sent_function({"parameters": CITY, **strict}, choice)
    assert sent == {"name": "f", "parameters": CITY, "strict": True}


@pytest.mark.parametrize("choice", ["auto", "none", None, 5, {"type": "allowed_tools", "mode": "auto"}])
def test_a_request_that_forces_no_call_is_sent_as_it_is(choice: Any) -> None:
    body = chat({"parameters": CITY}, choice)
    assert with_strict_tools(body) == body


@pytest.mark.parametrize(
    "tools", [None, 5, {}, ["x"], [{"type": "function", "function": 5}], [{"type": "x"}]]
)
def test_what_is_no_list_of_tools_is_left_to_the_engine(tools: Any) -> None:
    body = {"tool_choice": "required", "tools": tools}
    assert with_strict_tools(body) == body


def test_a_named_call_leaves_other_functions_alone() -> None:
    other = {"type": "function", "function": {"name": "g", "parameters": {"type": "string"}}}
    body = chat({"parameters": CITY}, NAMED)
    body["tools"].append(other)
    assert with_strict_tools(body)["tools"][1] == other


def test_the_functions_of_a_response_are_strict_too() -> None:
    tools = [
        {"type": "function", "name": "f", "parameters": CITY, "strict": False},
        {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "g"}]},
        {"type": "web_search"},
    ]
    sent = with_strict_tools({"tools": tools, "tool_choice": "required"})["tools"]
    assert sent[0] == {"type": "function", "name": "f", "parameters": CITY, "strict": True}
    assert sent[1]["tools"] == [{"type": "function", "name": "g", "parameters": NOTHING, "strict": True}]
    assert sent[2] == tools[2]
    named = with_strict_tools({"tools": tools, "tool_choice": {"type": "function", "name": "f"}})["tools"]
    assert named[0]["strict"] is True


INTEGER = {"properties": {"n": {"type": "integer"}}}
X = {"$defs": {"X": INTEGER}}
SCHEMAS = {
    "none": (None, NOTHING),
    "empty": ({}, NOTHING),
    "no type": (INTEGER, {**INTEGER, "type": "object"}),
    "an object or null": ({**INTEGER, "type": ["object", "null"]}, {**INTEGER, "type": "object"}),
    "a reference": ({"$ref": "#/$defs/X", **X}, {**INTEGER, "type": "object", **X}),
    "all of": (
        {"allOf": [INTEGER, {"properties": CITY["properties"], "required": ["city"]}], "required": ["n"]},
        {
            "type": "object",
            "properties": {**INTEGER["properties"], **CITY["properties"]},  # type: ignore[dict-item]
            "required": ["n", "city"],
        },
    ),
    "any of, with null": (
        {"anyOf": [{"$ref": "#/$defs/X"}, {"type": "null"}], **X},
        {**INTEGER, "type": "object", **X},
    ),
    "limits of what is beside them": (
        {**INTEGER, "anyOf": [{"required": ["n"]}, {"maxProperties": 0}]},
        {
            "anyOf": [
                {**INTEGER, "required": ["n"], "type": "object"},
                {**INTEGER, "maxProperties": 0, "type": "object"},
            ]
        },
    ),
    "a reference to itself": ({"$ref": "#/$defs/Y", "$defs": {"Y": {"$ref": "#/$defs/Y"}}}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schema_says_at_its_top_that_arguments_are_an_object(name: str) -> None:
    schema, expected = SCHEMAS[name]
    sent = sent_function({} if schema is None else {"parameters": schema})["parameters"]
    if expected is None:
        assert sent["type"] == "object"
    else:
        assert sent == expected


@pytest.mark.parametrize("schema", [{"type": "string"}, {"anyOf": [{"type": "null"}]}, {"type": ["null"]}])
def test_parameters_that_no_object_meets_are_refused(schema: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        with_strict_tools(chat({"parameters": schema}))
    assert refused.value.param == "tools.0.function.parameters"


@pytest.mark.parametrize(
    "schema", [{"anyOf": [CITY] * 33}, {"anyOf": [CITY, CITY], "description": "x" * 70_000}]
)
def test_alternatives_that_would_make_a_schema_huge_are_refused(schema: Any) -> None:
    with pytest.raises(InvalidRequest, match="too large"):
        with_strict_tools(chat({"parameters": schema}))


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_the_engine_is_sent_strict_functions_on_the_routes_that_take_tools(
    store: Store, socket: Path, engine: Engine, path: str
) -> None:
    gateway, client = gateway_for(store), Client()
    body = {"model": "tiny", **chat({"parameters": CITY})}
    if path == "/v1/responses":
        body["input"] = body.pop("messages", "x")
    async with engine_at(socket, say_hello) as fake:
        await Relay(gateway, path, body, project="default")({"type": "http"}, client.receive, client.send)
    await gateway.close()
    function = fake.seen[0][1]["tools"][0]["function"]
    assert function["strict"] is True


@pytest.mark.anyio
async def test_a_schema_of_which_the_engine_makes_no_grammar_is_named(
    store: Store, socket: Path, engine: Engine
) -> None:
    async def refuse(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        message = "Invalid structural tag specification."
        return web.json_response({"error": {"message": message, "param": None}}, status=400)

    gateway, client = gateway_for(store), Client()
    body = {"model": "tiny", **chat({"parameters": CITY})}
    async with engine_at(socket, refuse):
        await Relay(gateway, "/v1/chat/completions", body, project="default")(
            {"type": "http"}, client.receive, client.send
        )
    await gateway.close()
    assert (client.status, client.error["param"]) == (400, "tools")
    assert "parameters" in client.error["message"]
