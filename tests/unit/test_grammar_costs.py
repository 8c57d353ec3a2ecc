"""Grammars that would take an engine long to compile are refused, and those of usual schemas are not."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest

from tunewright.api.gateway.grammar_costs import grammar_cost, pattern_cost
from tunewright.api.gateway.limits import check_limits
from tunewright.errors import InvalidRequest

STRING = {"type": "string"}


def schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def keyed(*patterns: str) -> dict[str, Any]:
    return {"type": "object", "patternProperties": dict.fromkeys(patterns, STRING)}


def texts(lengths: list[tuple[int, int]]) -> dict[str, Any]:
    return schema(**{f"p{n}": {**STRING, "minLength": a, "maxLength": b} for n, (a, b) in enumerate(lengths)})


SLOW = {
    "keys of 300 patterns with counts": keyed(*(f"^[a-z]{{1,64}}_{n}$" for n in range(300))),
    "very many keys": keyed(*(f"^[a-zA-Z0-9_]+_{n}$" for n in range(1000))),
    "20 different lengths": texts([(0, 1000 + n) for n in range(20)]),
    "100 equal lengths": texts([(1, 10_000)] * 100),
    "alternatives of lengths": {"anyOf": [{**STRING, "minLength": n, "maxLength": 9000 - n} for n in range(1000, 1020)]
    },
    "counts in counts": {**STRING, "pattern": "^([a-z]{1,100}[0-9]{1,100}){1,100}$"},
    "a group of classes": {**STRING, "pattern": "(" + "[a-z]" * 100 + "){1,100}"},
    "in a property named as a keyword": schema(enum=texts([(0, 1000 + n) for n in range(20)])),
    "long alternatives": schema(**{key: {**STRING, "pattern": "|".join(["[a-z ]+0"] * 100)} for key in "abcdefgh"}),
}  # fmt: skip
USUAL = {
    "20 texts of one length": texts([(1, 255)] * 20),
    "some lengths": texts([(1, 64), (0, 200), (3, 255), (0, 1000), (0, 5000)]),
    "dates": schema(**{f"p{n}": {**STRING, "pattern": r"^\d{4}-\d{2}-\d{2}$"} for n in range(50)}),
    "identifiers": schema(**{f"p{n}": {**STRING, "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"} for n in range(50)}),
    "an address": {**STRING, "pattern": r"^[\w.+-]+@[\w-]+\.[\w.-]+$"},
    "keys of 300 patterns": keyed(*(f"^x-{n}-.*$" for n in range(300))),
    "many properties": schema(**{f"p{n}": STRING for n in range(1000)}),
    "long lists": {"type": "array", "minItems": 1, "maxItems": 10_000, "items": schema(a=STRING)},
}


def bodies(grammar: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Each way in which a request may bring it."""
    function = {"name": "f", "parameters": grammar}
    return [
        ("response_format", {"response_format": {"type": "json_schema", "json_schema": {"schema": grammar}}}),
        ("structured_outputs", {"structured_outputs": {"json": grammar}}),
        ("structured_outputs", {"structured_outputs": {"json": json.dumps(grammar)}}),
        ("text", {"text": {"format": {"type": "json_schema", "schema": grammar}}}),
        ("tools", {"tools": [{"type": "function", "function": {**function, "strict": True}}]}),
        ("tools", {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}),
        ("tools", {"tools": [{"type": "function", **function, "strict": True}]}),
    ]


@pytest.mark.parametrize("name", SLOW)
def test_what_takes_long_to_compile_is_refused_soon(name: str) -> None:
    began = time.process_time()
    for param, body in bodies(SLOW[name]):
        with pytest.raises(InvalidRequest, match=r"places to compile|characters") as refused:
            check_limits(body, 1024, None)
        assert refused.value.param == param
    assert time.process_time() - began < 2


@pytest.mark.parametrize("name", USUAL)
def test_usual_schemas_are_taken(name: str) -> None:
    for _, body in bodies(USUAL[name]):
        check_limits(body, 1024, None)


def test_tools_of_which_no_grammar_is_made_may_have_any_lengths() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": SLOW["20 different lengths"]}}
    check_limits({"tools": [tool]}, 1024, None)
    check_limits({"tools": [tool], "tool_choice": "none"}, 1024, None)


def test_all_grammars_of_a_request_count_together() -> None:
    half = texts([(0, 1000 + n) for n in range(5)])
    tools = [{"type": "function", "function": {"name": "f", "strict": True, "parameters": half}}]
    format = {"type": "json_schema", "json_schema": {"schema": half}}
    check_limits({"tools": tools}, 1024, None)
    with pytest.raises(InvalidRequest, match="places to compile"):
        check_limits({"tools": tools, "response_format": format}, 1024, None)


@pytest.mark.parametrize(
    ("pattern", "places"),
    [
        ("abc", 0), ("[a-z]", 1), (r"\d{4}-\d{2}", 6), ("[a-z]+", 3), (r"\[a{5}\]", 0), ("[]a]{3}", 3), (".*", 3),
        ("([a-z]{2}){3}", 6), ("((.{10}){10}){10}", 1000), (".{1,}", 1), (".{5,100000}", 256), (")(", 0), ("[", 0),
        (".{99999999999999999999}", 256), ("", 0), ("{3}", 0), ("(" * 1000, 0),
    ],
)  # fmt: skip
def test_the_places_of_a_pattern(pattern: str, places: int) -> None:
    assert pattern_cost(pattern) == places


@pytest.mark.parametrize("piece", ["[", "{ ", "(", "[a", "\\\\[", "{1", "{1,", "[]", "[^", "a{ , "], ids=repr)
@pytest.mark.parametrize("then", ["", " ", "1", "\\\\"], ids=repr)
def test_no_pattern_takes_long_to_read(piece: str, then: str) -> None:
    began = time.process_time()
    for text in (piece * 15_000, piece + then * 30_000, (piece + then * 100) * 300):
        pattern_cost(text)
        with contextlib.suppress(InvalidRequest):
            check_limits({"structured_outputs": {"grammar": text}}, 1024, None)
        with contextlib.suppress(InvalidRequest):
            check_limits({"structured_outputs": {"regex": text[:2000]}}, 1024, None)
    assert time.process_time() - began < 2


def test_whatever_is_no_schema_costs_nothing() -> None:
    assert (
        grammar_cost(None, 5, "x", [], {"minLength": "a", "maxLength": None, "pattern": 7, "json": "{"}) == 0
    )
