"""Rows as clients and programs write them: what the openai client dumps is taken as it is; what is too deep is not."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

pytest.importorskip("transformers")

from openai.types.chat import ChatCompletionMessage, ParsedChatCompletionMessage
from pydantic import BaseModel

import families
from tunewright.rows.canonical import check_chat
from tunewright.rows.chat import ChatEncoder
from tunewright.rows.examples import IGNORED
from tunewright.rows.faults import RowFault
from tunewright.rows.formats import inspect
from tunewright.rows.reading import Reading


class City(BaseModel):
    city: str


CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Ulm"}'},
}
PARSED = {"function": {**CALL["function"], "parsed_arguments": {"city": "Ulm"}}}  # type: ignore[dict-item]
QUOTED = {"url": "https://example.com", "title": "T", "start_index": 0, "end_index": 1}
ANSWERS = {
    "a text": ChatCompletionMessage(role="assistant", content="beta"),
    "with what vLLM adds": ChatCompletionMessage.model_validate(
        {"role": "assistant", "content": "beta", "reasoning": None, "token_ids": None}
    ),
    "a call": ChatCompletionMessage.model_validate(
        {"role": "assistant", "content": None, "tool_calls": [CALL]}
    ),
    "a parsed text": ParsedChatCompletionMessage[City](
        role="assistant", content='{"city": "Ulm"}', parsed=City(city="Ulm")
    ),
    "a parsed call": ParsedChatCompletionMessage[City].model_validate(
        {"role": "assistant", "content": None, "tool_calls": [CALL | PARSED]}
    ),
    "an answer of a search": ChatCompletionMessage.model_validate(
        {
            "role": "assistant",
            "content": "beta",
            "annotations": [{"type": "url_citation", "url_citation": QUOTED}],
        }
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return families.with_family(families.byte_level(), "qwen2_5", tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("name", ANSWERS)
def test_whatever_the_openai_client_dumps_is_a_row_and_is_learnt(base: Any, name: str) -> None:
    answer = ANSWERS[name].model_dump()
    row = {
        "messages": [families.user("alpha"), answer],
        "tools": families.TOOLS if answer["tool_calls"] else None,
    }
    check_chat(row)
    [example] = ChatEncoder(base).examples(row)
    learnt = base.decode([label for label in example.labels if label != IGNORED])
    assert learnt.endswith("<|im_end|>")
    assert (answer["content"] or "weather") in learnt
    assert "parsed" not in learnt
    assert "https" not in learnt


def test_a_refusal_without_a_content_says_what_to_do() -> None:
    answer = ChatCompletionMessage(role="assistant", content=None, refusal="I cannot.").model_dump()
    with pytest.raises(
        RowFault, match=r"messages\[1\] has a refusal and no content: write what should be answered"
    ):
        check_chat({"messages": [families.user("alpha"), answer]})


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def rows_of(levels: int) -> dict[str, dict[str, Any]]:
    """Rows in which something has so many levels."""
    call = {**CALL, "function": {"name": "weather", "arguments": json.dumps(deep(levels))}}
    as_object = {**CALL, "function": {"name": "weather", "arguments": deep(levels)}}
    tool = {"type": "function", "function": {"name": "weather", "parameters": deep(levels)}}
    said = families.said
    return {
        "arguments": {
            "messages": [families.user("a"), said(None, tool_calls=[call])],
            "tools": families.TOOLS,
        },
        "an object": {
            "messages": [families.user("a"), said(None, tool_calls=[as_object])],
            "tools": families.TOOLS,
        },
        "tools": {"messages": [families.user("a"), said("b")], "tools": [tool]},
    }


@pytest.mark.parametrize("which", rows_of(1))
def test_rows_that_are_taken_can_be_rendered_however_deep_they_are(base: Any, which: str) -> None:
    """The renderer is recursive: at 450 levels it failed in the middle of a job."""
    refused = inspect(io.BytesIO(json.dumps(rows_of(450)[which]).encode()), Reading()).problem
    assert refused is not None
    assert "nested too deeply" in refused
    row = rows_of(115)[which]
    assert inspect(io.BytesIO(json.dumps(row).encode()), Reading()).problem is None
    ChatEncoder(base).examples(row)


def test_arguments_are_json_as_others_read_it() -> None:
    call = {**CALL, "function": {"name": "weather", "arguments": '{"a": NaN}'}}
    with pytest.raises(
        RowFault, match=r"messages\[1\]\.tool_calls\[0\]\.function\.arguments: NaN is not valid JSON"
    ):
        check_chat({"messages": [families.user("alpha"), families.said(None, tool_calls=[call])]})
