"""What `rows.shapes` promises: each format is recognised and becomes its canonical row, which means the same again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_formats import json_values

from tunewright.rows.faults import RowFault
from tunewright.rows.formats import DataFormat, Reading, RowKind, check_file, read_rows
from tunewright.rows.shapes import Converted, convert

ASSETS = os.environ.get("TUNEWRIGHT_ASSETS")
AS_IT_IS = Reading()


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


TOOL = {"name": "f", "description": "d", "parameters": {"type": "object"}}
WRAPPED = {"type": "function", "function": TOOL}


def call(number: int, arguments: str) -> dict[str, Any]:
    return {
        "id": f"call{number:05}",
        "type": "function",
        "function": {"name": "f", "arguments": arguments},
    }


CASES: dict[str, tuple[dict[str, Any], DataFormat, RowKind, dict[str, Any]]] = {
    "openai chat": (
        {"messages": [user("a"), assistant("b", weight=1)], "tools": [WRAPPED]},
        DataFormat.OPENAI_CHAT,
        RowKind.CHAT,
        {"messages": [user("a"), assistant("b", weight=1)], "tools": [WRAPPED]},
    ),
    "tools as text": (
        {"messages": [user("a"), assistant("b")], "tools": json.dumps([WRAPPED])},
        DataFormat.OPENAI_CHAT,
        RowKind.CHAT,
        {"messages": [user("a"), assistant("b")], "tools": [WRAPPED]},
    ),
    "openai preference": (
        {
            "input": {"messages": [user("a")], "tools": [WRAPPED], "parallel_tool_calls": True},
            "preferred_output": [assistant("b")],
            "non_preferred_output": [assistant("c")],
        },
        DataFormat.OPENAI_PREFERENCE,
        RowKind.PREFERENCE,
        {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")], "tools": [WRAPPED]},
    ),
    "prompt and completion": (
        {"prompt": "a", "completion": "b"},
        DataFormat.PROMPT_COMPLETION,
        RowKind.PROMPT_COMPLETION,
        {"prompt": "a", "completion": "b"},
    ),
    "TRL's conversational prompt and completion": (
        {"prompt": [user("a"), assistant("b"), user("c")], "completion": [assistant("d")]},
        DataFormat.PROMPT_COMPLETION,
        RowKind.CHAT,
        {"messages": [user("a"), assistant("b", weight=0), user("c"), assistant("d")]},
    ),
    "alpaca": (
        {"instruction": "Add", "input": "1 2", "output": "3"},
        DataFormat.ALPACA,
        RowKind.CHAT,
        {"messages": [user("Add\n1 2"), assistant("3")]},
    ),
    "alpaca without input": (
        {"instruction": "Hi", "input": "", "output": "Ho"},
        DataFormat.ALPACA,
        RowKind.CHAT,
        {"messages": [user("Hi"), assistant("Ho")]},
    ),
    "alpaca with history": (
        {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]},
        DataFormat.ALPACA,
        RowKind.CHAT,
        {"messages": [system("s"), user("a"), assistant("b"), user("c"), assistant("d")]},
    ),
    "alpaca preference": (
        {"instruction": "a", "input": "", "chosen": "b", "rejected": "c"},
        DataFormat.ALPACA,
        RowKind.PREFERENCE,
        {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]},
    ),
    "alpaca with a label": (
        {"instruction": "a", "output": "b", "kto_tag": False},
        DataFormat.ALPACA,
        RowKind.LABELLED,
        {"prompt": [user("a")], "completion": [assistant("b")], "label": False},
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
        DataFormat.SHAREGPT,
        RowKind.CHAT,
        {"messages": [system("s"), user("a"), assistant("b")]},
    ),
    "sharegpt with tools": (
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": "é"}}'},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "b"},
            ],
            "tools": json.dumps([TOOL]),
        },
        DataFormat.SHAREGPT,
        RowKind.CHAT,
        {
            "messages": [
                user("a"),
                assistant("", tool_calls=[call(0, '{"x": "é"}')]),
                {"role": "tool", "content": "1", "tool_call_id": "call00000"},
                assistant("b"),
            ],
            "tools": [WRAPPED],
        },
    ),
    "sharegpt with parallel calls": (
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": '[{"name": "f", "arguments": {}}, {"name": "f"}]'},
                {"from": "tool", "value": "1"},
                {"from": "tool", "value": "2"},
                {"from": "gpt", "value": "b"},
            ]
        },
        DataFormat.SHAREGPT,
        RowKind.CHAT,
        {
            "messages": [
                user("a"),
                assistant("", tool_calls=[call(0, "{}"), call(1, "{}")]),
                {"role": "tool", "content": "1", "tool_call_id": "call00000"},
                {"role": "tool", "content": "2", "tool_call_id": "call00001"},
                assistant("b"),
            ]
        },
    ),
    "sharegpt preference": (
        {
            "conversations": [{"from": "human", "value": "a"}],
            "chosen": {"from": "gpt", "value": "b"},
            "rejected": {"from": "gpt", "value": "c"},
        },
        DataFormat.SHAREGPT,
        RowKind.PREFERENCE,
        {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]},
    ),
    "sharegpt with a label": (
        {"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "label": True},
        DataFormat.SHAREGPT,
        RowKind.LABELLED,
        {"prompt": [user("a")], "completion": [assistant("b")], "label": True},
    ),
    "trl preference as text": (
        {"prompt": "a", "chosen": " b", "rejected": " c"},
        DataFormat.TRL_PREFERENCE,
        RowKind.PREFERENCE,
        {"prompt": "a", "chosen": " b", "rejected": " c"},
    ),
    "trl preference without prompt": (
        {"chosen": "Human: a Assistant: bc", "rejected": "Human: a Assistant: dc"},
        DataFormat.TRL_PREFERENCE,
        RowKind.PREFERENCE,
        {"prompt": "Human: a Assistant:", "chosen": " bc", "rejected": " dc"},
    ),
    "trl preference with whole conversations": (
        {"prompt": "a", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
        DataFormat.TRL_PREFERENCE,
        RowKind.PREFERENCE,
        {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]},
    ),
    "trl kto": (
        {"prompt": "a", "completion": "b", "label": True},
        DataFormat.TRL_KTO,
        RowKind.LABELLED,
        {"prompt": "a", "completion": "b", "label": True},
    ),
    "messages with a label": (
        {"messages": [user("a"), assistant("b")], "label": False},
        DataFormat.TRL_KTO,
        RowKind.LABELLED,
        {"prompt": [user("a")], "completion": [assistant("b")], "label": False},
    ),
    "text": ({"text": "a"}, DataFormat.TEXT, RowKind.TEXT, {"text": "a"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_format_is_recognised_and_becomes_its_canonical_row(name: str) -> None:
    given_row, *expected = CASES[name]
    found = convert(given_row, AS_IT_IS)
    assert [found.format, found.kind, found.row] == expected


@pytest.mark.parametrize("name", CASES)
def test_a_canonical_row_means_itself(name: str) -> None:
    *_, kind, row = CASES[name]
    again = convert(json.loads(json.dumps(row)), AS_IT_IS)
    assert (again.kind, again.row) == (kind, row)


FAULTS: dict[str, tuple[Any, str]] = {
    "a turn of nobody": (
        {"conversations": [{"from": "bot", "value": "a"}]},
        'conversations[0].from must be one of "function_call", "gpt", "human", "observation", "system"; got "bot"',
    ),
    "a turn without text": ({"conversations": [{"from": "human"}]}, "conversations[0].value must be a string"),
    "a turn is text": ({"conversations": ["a"]}, "conversations[0] must be an object"),
    "no turns": ({"conversations": []}, "at least one turn"),
    "only questions": ({"conversations": [{"from": "human", "value": "a"}]}, "no assistant message to learn from"),
    "a call that is no JSON": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "f(x)"}]},
        "conversations[1] is a call, and must be JSON",
    ),
    "tools that are no JSON": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "tools": "f"},
        '"tools" is not valid JSON',
    ),
    "images": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "images": ["a.png"]},
        '"images" cannot be trained on here',
    ),
    "no output": ({"instruction": "a"}, '"output" is missing'),
    "an empty output": ({"instruction": "a", "output": ""}, '"output" is empty'),
    "an output that is a list": ({"instruction": "a", "output": ["b"]}, '"output" must be a string, not a list'),
    "a history that is none": ({"instruction": "a", "output": "b", "history": [["c"]]}, "history[0] must be a pair"),
    "no rejected": ({"prompt": "a", "chosen": "b"}, '"rejected" is missing'),
    "texts and messages": (
        {"prompt": "a", "chosen": "b", "rejected": [assistant("c")]},
        '"rejected" must be a string as "prompt" is, not a list',
    ),
    "equal answers": ({"chosen": "a", "rejected": "a"}, '"chosen" is empty'),
    "preference without input": ({"preferred_output": [], "non_preferred_output": []}, '"input" must be an object'),
    "a label that is none": ({"prompt": "a", "completion": "b", "label": "good"}, '"label" must be true or false'),
    "a label of a question": ({"messages": [assistant("a"), user("b")], "label": True}, "the last message must be"),
    "text that is none": ({"text": 5}, '"text" must be a string, not a number'),
    "empty text": ({"text": ""}, '"text" is empty'),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_row_without_a_meaning_is_refused_by_its_field(name: str) -> None:
    row, message = FAULTS[name]
    with pytest.raises(RowFault) as raised:
        convert(row, AS_IT_IS)
    assert message in str(raised.value)


def test_alpaca_rows_become_the_text_that_alpaca_was_trained_with() -> None:
    reading = Reading(alpaca="template")
    found = convert({"instruction": "Add", "input": "1 2", "output": "3"}, reading)
    assert found.kind is RowKind.PROMPT_COMPLETION
    assert found.row == {
        "prompt": "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\nAdd\n\n### Input:\n1 2\n\n"
        "### Response:\n",
        "completion": "3",
    }
    pair = convert({"instruction": "a", "chosen": "b", "rejected": "c"}, reading)
    assert pair.kind is RowKind.PREFERENCE
    assert pair.row["prompt"].endswith("completes the request.\n\n### Instruction:\na\n\n### Response:\n")


def test_columns_name_what_a_file_calls_otherwise() -> None:
    reading = Reading(columns={"prompt": "question", "completion": "answer"})
    row = {"question": "a", "answer": "b", "id": 7, "prompt": "another"}
    assert convert(row, reading) == Converted(
        DataFormat.PROMPT_COMPLETION, RowKind.PROMPT_COMPLETION, {"prompt": "a", "completion": "b"}
    )
    with pytest.raises(
        RowFault, match=r'none of the columns "answer", "question" of data.columns; has "text"'
    ):
        convert({"text": "x"}, reading)
    with pytest.raises(RowFault, match='"completion" is missing'):
        convert({"question": "x"}, reading)


def test_columns_may_have_llama_factorys_names() -> None:
    reading = Reading(columns={"prompt": "q", "query": "c", "response": "a"})
    assert convert({"q": "Add", "c": "1 2", "a": "3"}, reading).row == CASES["alpaca"][3]


def test_tags_name_the_turns_of_other_conversations() -> None:
    tags = {"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "you"}
    turns = [{"who": "me", "what": "a"}, {"who": "you", "what": "b"}]
    found = convert({"dialog": turns}, Reading(columns={"conversations": "dialog"}, tags=tags))
    assert found.row == {"messages": [user("a"), assistant("b")]}


@settings(max_examples=500, deadline=None)
@given(json_values, st.booleans(), st.sampled_from(["chat", "template"]))
def test_whatever_is_taken_means_itself_again(value: Any, is_table: bool, alpaca: Any) -> None:
    try:
        found = convert(value, Reading(alpaca=alpaca), is_table=is_table)
    except RowFault:
        return
    again = convert(found.row, AS_IT_IS)
    assert (again.kind, again.row) == (found.kind, found.row)


@pytest.mark.skipif(not ASSETS, reason="TUNEWRIGHT_ASSETS is not set")
@pytest.mark.parametrize(
    ("file", "format", "kind", "rows"),
    [
        ("llamafactory/alpaca_en_demo.json", "alpaca", "chat", 999),
        ("llamafactory/identity.json", "alpaca", "chat", 91),
        ("llamafactory/dpo_en_demo.json", "sharegpt", "preference", 300),
        ("llamafactory/kto_en_demo.json", "trl_kto", "labelled", 300),
        ("llamafactory/glaive_toolcall_en_demo.json", "sharegpt", "chat", 300),
        ("llamafactory/c4_demo.jsonl", "text", "text", 300),
        ("gsm8k/train.jsonl", "prompt_completion", "prompt_completion", 7473),
    ],
)
def test_real_files_are_recognised_and_every_row_is_taken(
    file: str, format: str, kind: str, rows: int
) -> None:
    path = Path(str(ASSETS)) / "data" / file
    columns = {"prompt": "question", "completion": "answer"} if "gsm8k" in file else None
    reading = Reading(columns=columns)
    report = check_file(path, reading)
    assert (report.format, report.kind, report.rows) == (format, kind, rows)
    read = [row for _, row in read_rows(path, reading)]
    assert len(read) == rows
    assert [convert(row, AS_IT_IS).row for row in read] == read
