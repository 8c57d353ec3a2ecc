"""What `rows.formats` promises: every fault is reported with its line, and only InvalidData is raised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunewright.rows.canonical import RowKind
from tunewright.rows.containers import json_text
from tunewright.rows.formats import DataFormat, InvalidData, check_file, read_rows

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}
GOOD = {"messages": [USER, ANSWER]}


def lines(*rows: Any) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


@pytest.fixture
def check(tmp_path: Path) -> Any:
    def run(content: bytes) -> Any:
        path = tmp_path / "file.jsonl"
        path.write_bytes(content)
        return check_file(path)

    return run


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


def call(name: Any = "f", arguments: Any = "{}") -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


FAULTS: dict[str, tuple[Any, str]] = {
    "not json": (b'{"messages": [', "not valid JSON"),
    "not utf-8": (b'{"prompt": "\xff", "completion": "x"}', "not UTF-8 text"),
    "NaN": (b'{"prompt": "x", "completion": NaN}', "NaN is not valid JSON"),
    "Infinity": (b'{"prompt": -Infinity}', "-Infinity is not valid JSON"),
    "a number too long for Python": (b'{"prompt": ' + b"1" * 5000 + b"}", "a number of more than 4300 digits"),
    "nested too deeply": (b'{"prompt": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
    "a list": ([1], "a row must be a JSON object, not a list"),
    "a string": ("a text", "a row must be a JSON object, not a string"),
    "null": (None, "a row must be a JSON object, not null"),
    "a number": (5, "a row must be a JSON object, not a number"),
    "true": (True, "a row must be a JSON object, not a boolean"),
    "neither format": ({"words": "x"}, 'data.columns says what they are'),
    "an empty row": ({}, "has nothing"),
    "completion missing": ({"prompt": "x"}, '"completion" is missing'),
    "prompt missing": ({"completion": "x"}, '"prompt" is missing'),
    "prompt is a number": ({"prompt": 1, "completion": "x"}, '"prompt" must be a string, not a number'),
    "completion is null": ({"prompt": "x", "completion": None}, '"completion" must be a string, not null'),
    "nothing to learn": ({"prompt": "x", "completion": ""}, '"completion" is empty'),
    "unknown text field": ({"prompt": "x", "completion": "y", "score": 1}, 'unknown field "score"'),
    "unknown chat field": (chat(USER, ANSWER, extra=1), 'unknown field "extra"'),
    "no messages": (chat(), "at least one message"),
    "messages is an object": ({"messages": {}}, '"messages" must be a list'),
    "tools is an object": (chat(USER, ANSWER, tools={}), '"tools" must be a list'),
    "a message is a string": (chat("hi", ANSWER), "messages[0] must be an object, not a string"),
    "unknown role": (chat({"role": "bot", "content": "x"}), 'messages[0].role must be one of system'),
    "no role": (chat({"content": "x"}), "got null"),
    "role is a list": (chat({"role": [], "content": "x"}), "got []"),
    "weight 2": (chat(USER, {**ANSWER, "weight": 2}), "messages[1].weight must be 0 or 1"),
    "weight true": (chat(USER, {**ANSWER, "weight": True}), "messages[1].weight must be 0 or 1"),
    "weight a string": (chat(USER, {**ANSWER, "weight": "1"}), "messages[1].weight must be 0 or 1"),
    "only weight 0": (chat(USER, {**ANSWER, "weight": 0}), "no assistant message to learn from"),
    "no assistant": (chat(USER), "no assistant message to learn from"),
    "content missing": (chat({"role": "user"}, ANSWER), "messages[0].content is missing"),
    "content null": (chat(USER, {"role": "assistant", "content": None}), "messages[1].content is missing"),
    "content a number": (chat({"role": "user", "content": 5}, ANSWER), "must be a string, not a number"),
    "an image": (
        chat({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER),
        "messages[0].content may only have parts of type text",
    ),
    "a part without text": (chat({"role": "user", "content": [{"type": "text"}]}, ANSWER), "parts of type text"),
    "user calls tools": (chat({**USER, "tool_calls": [call()]}, ANSWER), "only the assistant calls tools"),
    "arguments that are no object": (
        chat(USER, {**ANSWER, "tool_calls": [call(arguments="[1]")]}),
        "messages[1].tool_calls[0].function.arguments must be a JSON object, not a list",
    ),
    "the older form of a call": (
        chat(USER, {**ANSWER, "function_call": {"name": "f", "arguments": "{}"}}),
        "messages[1].function_call is OpenAI's older form",
    ),
    "a tool without a name": (chat(USER, ANSWER, tools=[{"type": "function"}]), "tools[0].function.name is missing"),
    "calls an object": (chat(USER, {**ANSWER, "tool_calls": {}}), "messages[1].tool_calls must be a list"),
    "call without a name": (
        chat(USER, {**ANSWER, "tool_calls": [call(None)]}),
        "messages[1].tool_calls[0].function.name is missing",
    ),
    "call is a string": (chat(USER, {**ANSWER, "tool_calls": ["f"]}), "tool_calls[0].function.name is missing"),
    "arguments not JSON": (
        chat(USER, {**ANSWER, "tool_calls": [call(), call(arguments="{x}")]}),
        "messages[1].tool_calls[1].function.arguments is not valid JSON",
    ),
    "arguments nested too deeply": (
        chat(USER, {**ANSWER, "tool_calls": [call(arguments="[" * 200_000)]}),
        "messages[1].tool_calls[0].function.arguments is not valid JSON",
    ),
    "arguments a list": (
        chat(USER, {**ANSWER, "tool_calls": [call(arguments=[])]}),
        "messages[1].tool_calls[0].function.arguments must be a JSON string",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_with_its_line(check: Any, name: str) -> None:
    row, message = FAULTS[name]
    with pytest.raises(InvalidData) as raised:
        check(lines(row, b"", row))  # the first row, a blank line, the third line
    assert message in str(raised.value)
    assert str(raised.value).startswith("line 1: ")
    assert "line 3: " in str(raised.value)
    assert "line 2: " not in str(raised.value)


@pytest.mark.parametrize(
    "row",
    [
        GOOD,
        chat({"role": "system", "content": "s"}, USER, ANSWER),
        chat({"role": "developer", "content": "s"}, USER, ANSWER),
        chat(USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}),
        chat(USER, {**ANSWER, "tool_calls": []}),
        chat(
            {**USER, "tool_calls": None, "weight": None},
            {
                **ANSWER,
                "tool_calls": None,
                "function_call": None,
                "refusal": None,
                "audio": None,
                "weight": None,
            },
            tools=None,
            parallel_tool_calls=None,
        ),
        chat({"role": "user", "content": [{"type": "text", "text": "hi"}]}, ANSWER),
        chat(USER, {"role": "assistant", "content": None, "tool_calls": [call(arguments="")]}),
        chat(USER, {"role": "assistant", "tool_calls": [call(arguments={"a": 1})]}),
        chat(USER, {"role": "assistant", "tool_calls": [call(arguments=None)]}),
        chat(USER, ANSWER, tools=[{"type": "function", "function": {"name": "f"}}], parallel_tool_calls=True),
        chat({"role": "tool", "content": "4", "tool_call_id": "c"}, ANSWER),
    ],
)
def test_good_chat_rows_are_taken(check: Any, row: Any) -> None:
    report = check(lines(row))
    assert (report.format, report.kind) == (DataFormat.OPENAI_CHAT, RowKind.CHAT)


def test_text_rows_are_taken_also_with_an_empty_prompt(check: Any) -> None:
    report = check(lines({"prompt": "", "completion": "x"}, {"prompt": "a", "completion": "b"}))
    assert (report.format, report.kind, report.rows) == (
        DataFormat.PROMPT_COMPLETION,
        RowKind.PROMPT_COMPLETION,
        2,
    )


def test_bom_blank_lines_and_windows_line_ends_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n  \n" + json.dumps(GOOD).encode()
    )
    assert check_file(path).rows == 2
    assert list(read_rows(path)) == [(1, GOOD), (4, GOOD)]


NOT_READ = (
    "which is not read: give JSONL (one JSON object in each line), a JSON array of objects, CSV with a header, or "
    "Parquet"
)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "a PDF"),
        (b"PK\x03\x04\x14\x00\x06\x00[Content_Types].xml", "a zip archive or an Office document (unpack it)"),
        (b"BZh91AY&SY", "compressed with bzip2 (use gzip)"),
        (json.dumps(GOOD).encode("utf-16"), "UTF-16 text"),
        (b"\x7fELF\x02\x01\x01\x00\x00", "a binary file"),
        (b"\x00" * 100, "a binary file"),
        (json.dumps(GOOD, indent=2).encode(), "JSON with objects over several lines"),
        (b"Dear model,\n\nplease learn this.\n", "plain text, or a table without a header"),
        ("caf\xe9;1;1".encode("latin-1"), "plain text, or a table without a header"),
    ],
)
def test_a_file_of_another_kind_is_called_by_its_name(check: Any, content: bytes, kind: str) -> None:
    with pytest.raises(InvalidData) as raised:
        check(content)
    assert str(raised.value) == f"the file is {kind}, {NOT_READ}"


@pytest.mark.parametrize(
    "content", [b"# a note\n" + lines(GOOD), lines({"prompt": 1}) + b"[1, 2\n", lines([1], GOOD)]
)
def test_one_good_row_is_enough_to_be_jsonl(check: Any, content: bytes) -> None:
    with pytest.raises(InvalidData, match=r"^line 1: "):
        check(content)


def test_a_line_without_end_is_not_read_whole(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "LONGEST_ROW", 2**20)
    with pytest.raises(InvalidData) as raised:
        check(b'{"prompt": "' + b"x" * 3 * 2**20)
    assert str(raised.value) == "line 1: longer than 1 MiB"
    assert check(lines({"prompt": "x" * (2**20 - 100), "completion": "y"})).rows == 1


MESSAGES = {  # in full, as a user reads them
    b'{"messages": [{"role": "user", "content": "hi"}]': (
        "line 1: not valid JSON (Expecting ',' delimiter at column 49); the file must be JSONL"
    ),
    json.dumps(chat(USER)).encode(): (
        "line 1: no assistant message to learn from (with weight 1): add what the model should answer"
    ),
    json.dumps(chat({"role": "bot", "content": "x"}, ANSWER)).encode(): (
        'line 1: messages[0].role must be one of system, developer, user, assistant, tool, function; got "bot"'
    ),
    b'{"prompt": "x", "completion": "y", "score": 1}': (
        'line 1: unknown field "score": such a row has "prompt" and "completion" only; to leave others out, name those '
        "to use in data.columns"
    ),
    b'{"messages": [], "functions": []}': (
        'line 1: unknown field "functions": such a row has "messages", "tools" and "parallel_tool_calls" only; to '
        "leave others out, name those to use in data.columns"
    ),
    b'{"question": "x", "answer": "y"}': (
        'line 1: needs "messages", or "prompt" and "completion", or the fields of another format that is known; has '
        '"answer", "question". Of other columns, data.columns says what they are, such as '
        '{"prompt": "question", "completion": "answer"}'
    ),
    b"": "the file is empty: it has no rows",
}


@pytest.mark.parametrize("content", MESSAGES)
def test_messages_say_what_and_where_and_what_to_do(check: Any, content: bytes) -> None:
    with pytest.raises(InvalidData) as raised:
        check(content)
    assert str(raised.value) == MESSAGES[content]


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_an_empty_file_is_refused(check: Any, content: bytes) -> None:
    with pytest.raises(InvalidData, match="the file is empty"):
        check(content)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="cannot be read: No such file"):
        check_file(tmp_path / "none")


def test_one_format_in_a_file(check: Any) -> None:
    with pytest.raises(
        InvalidData,
        match=r"^line 3: this row has the format prompt_completion \(.*\), the first one openai_chat \(",
    ):
        check(lines(GOOD, GOOD, {"prompt": "a", "completion": "b"}))


def test_a_bad_first_row_does_not_decide_the_format(check: Any) -> None:
    with pytest.raises(InvalidData) as raised:
        check(lines({"prompt": 1}, GOOD))
    assert str(raised.value).count("line ") == 1


def test_ten_faults_are_told_and_that_there_may_be_more(check: Any) -> None:
    with pytest.raises(InvalidData) as raised:
        check(lines(*[{}] * 12))
    assert str(raised.value).count("; line ") == 9
    assert str(raised.value).count("needs ") == 1, "a message is told once"
    assert str(raised.value).endswith("(and maybe more)")
    with pytest.raises(InvalidData) as few:
        check(lines(*[{}] * 9))
    assert "maybe more" not in str(few.value)


NAMES = [
    "messages", "role", "content", "prompt", "completion", "tool_calls", "function", "label", "chosen", "rejected",
    "conversations", "from", "value", "instruction", "input", "output", "history", "tools", "text", "preferred_output",
    "non_preferred_output", "data",
]  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES) | st.text(max_size=4),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.lists(json_values, max_size=4).map(lambda rows: lines(*rows)))
def test_arbitrary_bytes_raise_nothing_but_invalid_data(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(content)
    try:
        summary = check_file(path)
    except InvalidData:
        pass
    else:
        assert summary.rows == len(list(read_rows(path)))  # accepted rows can be read


def test_text_that_cannot_be_encoded_is_refused(check: Any) -> None:
    """Half of a surrogate pair is valid JSON, but no tokenizer takes it."""
    with pytest.raises(InvalidData, match="line 1: "):
        check(b'{"prompt": "x", "completion": "\\ud800"}\n')
