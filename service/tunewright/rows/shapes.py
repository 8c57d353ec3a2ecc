"""The formats of rows: which one a row has, and the canonical row that it means (`rows.canonical`).

A format is recognised by the fields of a row. Its conversion raises RowFault for what has no meaning.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from tunewright.rows import alpaca, sharegpt
from tunewright.rows.canonical import (
    Row,
    RowKind,
    check_answers,
    check_chat,
    check_graded,
    check_text,
    unlearnt,
)
from tunewright.rows.faults import RowFault, json_type, listed, parse_json
from tunewright.rows.reading import COLUMNS_SAY, Reading


class DataFormat(StrEnum):
    """The formats, as reports name them."""

    OPENAI_CHAT = "openai_chat"
    """`messages`, and `tools` where there are any; TRL's conversations are the same."""
    OPENAI_PREFERENCE = "openai_preference"
    """`input`, `preferred_output` and `non_preferred_output`."""
    OPENAI_REINFORCEMENT = "openai_reinforcement"
    """`messages` that end with what is asked, and further fields, which graders refer to."""
    PROMPT_COMPLETION = "prompt_completion"
    """`prompt` and `completion`, texts or (TRL) lists of messages."""
    ALPACA = "alpaca"
    """`instruction`, `input` and `output`, in LLaMA-Factory's form also `system`, `history`, `chosen`, `rejected`."""
    SHAREGPT = "sharegpt"
    """`conversations` of `from` and `value`, in LLaMA-Factory's form also `system`, `tools`, `chosen`, `rejected`."""
    TRL_PREFERENCE = "trl_preference"
    """`chosen` and `rejected`, with or without `prompt`, texts or lists of messages."""
    TRL_KTO = "trl_kto"
    """`label` beside `prompt` and `completion`, or beside `messages`."""
    TEXT = "text"
    """`text`."""


class Converted(NamedTuple):
    """What a row of a file means."""

    format: DataFormat
    kind: RowKind
    row: Row
    ignored: frozenset[str] = frozenset()
    """Its fields that have no meaning in the format."""


_STRICT = {DataFormat.OPENAI_CHAT, DataFormat.PROMPT_COMPLETION}
"""Formats of which an unknown field is a fault, as in OpenAI's API, unless the row is that of a table."""
_FIELDS = {
    DataFormat.OPENAI_CHAT: {"messages", "tools", "parallel_tool_calls"},
    DataFormat.OPENAI_REINFORCEMENT: {"messages", "tools", "parallel_tool_calls"},
    DataFormat.OPENAI_PREFERENCE: {"input", "preferred_output", "non_preferred_output"},
    DataFormat.PROMPT_COMPLETION: {"prompt", "completion"},
    DataFormat.ALPACA: alpaca.FIELDS,
    DataFormat.SHAREGPT: sharegpt.FIELDS,
    DataFormat.TRL_PREFERENCE: {"prompt", "chosen", "rejected", "tools"},
    DataFormat.TRL_KTO: {"messages", "prompt", "completion", "label", "kto_tag", "tools"},
    DataFormat.TEXT: {"text"},
}
_MARKS = (
    ({"conversations"}, DataFormat.SHAREGPT),
    ({"preferred_output", "non_preferred_output"}, DataFormat.OPENAI_PREFERENCE),
    ({"instruction"}, DataFormat.ALPACA),
    ({"chosen", "rejected"}, DataFormat.TRL_PREFERENCE),
)
"""Fields of which each marks a format by itself; the first one counts."""
_LEARNT = {"messages", "prompt", "completion"}
_MEDIA = {"images", "videos", "audios", "image", "functions"}
"""Fields without which a row would mean something else."""


def convert(value: object, reading: Reading, *, is_table: bool = False) -> Converted:
    """Raises RowFault."""
    if not isinstance(value, dict):
        raise RowFault(f"a row must be a JSON object, not {json_type(value)}")
    row = _mapped(value, reading) if reading.columns is not None else value
    if is_table:  # an empty cell is no value, except as a text
        row = {k: part for k, part in row.items() if part not in (None, "") or k in ("prompt", "completion")}
    given = {name for name, part in row.items() if part is not None}
    found = _recognised(row, given)
    known = _FIELDS[found]
    if found is DataFormat.PROMPT_COMPLETION and isinstance(row.get("prompt"), list):
        known = known | {"tools"}
    unknown = given - known
    if unknown and found in _STRICT and not is_table:
        raise RowFault(
            f"unknown field {listed(unknown)}: such a row has {_named(found)} only; to leave others out, name "
            "those to use in data.columns"
        )
    if lost := unknown & _MEDIA:
        raise RowFault(f"{listed(lost)} cannot be trained on here: rows are text")
    if found is DataFormat.OPENAI_REINFORCEMENT:  # all of the row is the item
        known, unknown = set(row), set()
    present = {name: part for name, part in row.items() if name in known}
    kind, made = _CONVERSIONS[found](present, reading)
    return Converted(found, kind, made, frozenset(map(str, unknown)))


def _mapped(row: Row, reading: Reading) -> Row:
    fields = reading.fields() or {}
    missing = set(fields.values()) - row.keys()
    if missing == set(fields.values()):
        raise RowFault(f"has none of the columns {listed(missing)} of data.columns; has {listed(row)}")
    return {field: row[column] for field, column in fields.items() if column in row}


def _recognised(row: Row, given: set[str]) -> DataFormat:
    """`given`: its fields that are not null."""
    for names, found in _MARKS:
        if names & given:
            return found
    if _LEARNT & row.keys():
        if given & {"label", "kto_tag"}:
            return DataFormat.TRL_KTO
        is_text = "messages" not in given and ("messages" not in row or given & {"prompt", "completion"})
        if is_text:
            return DataFormat.PROMPT_COMPLETION
        return DataFormat.OPENAI_REINFORCEMENT if _is_graded(row, given) else DataFormat.OPENAI_CHAT
    if "text" in row:
        return DataFormat.TEXT
    raise RowFault(
        'needs "messages", or "prompt" and "completion", or the fields of another format that is known; has '
        f"{listed(row)}. Of other columns, {COLUMNS_SAY}"
    )


def _is_graded(row: Row, given: set[str]) -> bool:
    """Whether a row with messages ends with what is asked, and has further fields for graders."""
    messages = row["messages"]
    last = messages[-1] if isinstance(messages, list) and messages else None
    asks = isinstance(last, dict) and last.get("role") in ("user", "tool", "function")
    return asks and bool(given - _FIELDS[DataFormat.OPENAI_CHAT])


def _named(found: DataFormat) -> str:
    names = [f'"{name}"' for name in ("prompt", "completion", "messages", "tools", "parallel_tool_calls")]
    names = [name for name in names if name.strip('"') in _FIELDS[found]]
    return f"{', '.join(names[:-1])} and {names[-1]}"


# the conversions


def _from_chat(row: Row, _: Reading) -> tuple[RowKind, Row]:
    made = {name: _parsed(part) if name != "parallel_tool_calls" else part for name, part in row.items()}
    check_chat(made)
    return RowKind.CHAT, made


def _from_reinforcement(row: Row, _: Reading) -> tuple[RowKind, Row]:
    made = {"messages": row["messages"], "item": row, **_tools(row)}
    check_graded(made)
    return RowKind.GRADED, made


def _from_prompt_completion(row: Row, _: Reading) -> tuple[RowKind, Row]:
    if not isinstance(row.get("prompt"), list):
        check_text(row)
        return RowKind.PROMPT_COMPLETION, row
    asked = {**row, **_tools(row)}
    check_answers(asked, "completion")
    made = {"messages": [*unlearnt(asked["prompt"]), *asked["completion"]], **_tools(asked)}
    check_chat(made)
    return RowKind.CHAT, made


def _from_openai_preference(row: Row, _: Reading) -> tuple[RowKind, Row]:
    asked = _parsed(row.get("input"))
    if not isinstance(asked, dict) or "messages" not in asked:
        raise RowFault('"input" must be an object with "messages"')
    made = {
        "prompt": asked["messages"],
        "chosen": _parsed(row.get("preferred_output")),
        "rejected": _parsed(row.get("non_preferred_output")),
        **_tools(asked),
    }
    return _preference(made)


def _from_trl_preference(row: Row, _: Reading) -> tuple[RowKind, Row]:
    made: Row = {name: _parsed_messages(part) for name, part in row.items() if name != "tools"} | _tools(row)
    prompt, answers = made.get("prompt"), [made.get("chosen"), made.get("rejected")]
    if prompt is None and all(isinstance(answer, str) for answer in answers):
        made |= _split(made["chosen"], made["rejected"])
    elif all(isinstance(answer, list) for answer in answers) and not isinstance(prompt, list):
        made |= _split(made["chosen"], made["rejected"])
        if prompt is not None and not made["prompt"]:  # a text beside answers that do not repeat it
            made["prompt"] = [{"role": "user", "content": prompt}]
    return _preference(made)


def _split(chosen: list[Row] | str, rejected: list[Row] | str) -> Row:
    """What both have in common is the prompt (as TRL's `extract_prompt`), which does not end with a space."""
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    if same and chosen[same - 1] == " ":
        same -= 1
    return {"prompt": chosen[:same], "chosen": chosen[same:], "rejected": rejected[same:]}


def _preference(made: Row) -> tuple[RowKind, Row]:
    check_answers(made, "chosen", "rejected")
    return RowKind.PREFERENCE, made


def _from_kto(row: Row, _: Reading) -> tuple[RowKind, Row]:
    label = label_of(row)
    if row.get("messages") is None:
        made = {name: row[name] for name in ("prompt", "completion") if row.get(name) is not None}
        made |= {"label": label, **_tools(row)}
        check_answers({"prompt": "", **made}, "completion")
        return RowKind.LABELLED, {"prompt": "", **made}
    chat = {"messages": _parsed(row["messages"]), **_tools(row)}
    check_chat(chat)
    return labelled(chat, label)


def labelled(chat: Row, label: bool) -> tuple[RowKind, Row]:
    """A conversation whose last answer is good or bad."""
    *prompt, answer = chat["messages"]
    made = {"prompt": prompt, "completion": [answer], "label": label}
    if answer["role"] != "assistant":
        raise RowFault("the last message must be the assistant's, which the label is about")
    check_answers(made, "completion")
    return RowKind.LABELLED, made | {key: part for key, part in chat.items() if key == "tools"}


def label_of(row: Row) -> bool:
    """Raises RowFault. A table without booleans has 0 and 1, or the words."""
    label = row.get("label", row.get("kto_tag"))
    known = {"true": True, "false": False, "1": True, "0": False}
    if isinstance(label, bool) or label in (0, 1):
        return bool(label)
    if isinstance(label, str) and label.strip().lower() in known:
        return known[label.strip().lower()]
    raise RowFault(f'"label" must be true or false, not {json.dumps(str(label)[:40])}')


def _from_text(row: Row, _: Reading) -> tuple[RowKind, Row]:
    if not isinstance(row.get("text"), str):
        raise RowFault(f'"text" must be a string, not {json_type(row.get("text"))}')
    if not row["text"]:
        raise RowFault('"text" is empty: there is nothing to learn')
    return RowKind.TEXT, {"text": row["text"]}


def _with_answers(row: Row, asked: Row) -> tuple[RowKind, Row]:
    """The row of a format that adds answers to what is asked: one to learn, one with a label, or two to compare.

    `asked` has `prompt`, a text or messages; and `completion`, `chosen`, `rejected` of the same type.
    """
    if "chosen" in asked or "rejected" in asked:
        return _preference(asked)
    if row.get("label", row.get("kto_tag")) is not None:
        check_answers(asked, "completion")
        return RowKind.LABELLED, {**asked, "label": label_of(row)}
    if isinstance(asked["prompt"], str):
        check_text(asked)
        return RowKind.PROMPT_COMPLETION, asked
    made = {"messages": [*asked["prompt"], *asked["completion"]], **_tools(asked)}
    check_chat(made)
    return RowKind.CHAT, made


def _from_alpaca(row: Row, reading: Reading) -> tuple[RowKind, Row]:
    return _with_answers(row, alpaca.asked(row, as_chat=reading.alpaca == "chat"))


def _from_sharegpt(row: Row, reading: Reading) -> tuple[RowKind, Row]:
    conversation = sharegpt.conversation(row, reading.tags or {})
    answers = sharegpt.answers(row, reading.tags or {})
    if answers:
        return _preference({"prompt": conversation.pop("messages"), **answers, **conversation})
    check_chat(conversation)
    if row.get("label", row.get("kto_tag")) is not None:
        return labelled(conversation, label_of(row))
    return RowKind.CHAT, conversation


def _tools(row: Row) -> Row:
    tools = _parsed(row.get("tools"))
    return {"tools": tools} if tools is not None else {}


def _parsed(value: object) -> object:
    """A list or an object that a table, or LLaMA-Factory, holds as text."""
    if not isinstance(value, str):
        return value
    return parse_json(value) if value.strip() else None


def _parsed_messages(value: object) -> object:
    """The messages that a table holds as text; any other text is one."""
    return parse_json(value) if isinstance(value, str) and value.startswith('[{"') else value


_CONVERSIONS: dict[DataFormat, Callable[[Row, Reading], tuple[RowKind, Row]]] = {
    DataFormat.OPENAI_CHAT: _from_chat,
    DataFormat.OPENAI_REINFORCEMENT: _from_reinforcement,
    DataFormat.OPENAI_PREFERENCE: _from_openai_preference,
    DataFormat.PROMPT_COMPLETION: _from_prompt_completion,
    DataFormat.ALPACA: _from_alpaca,
    DataFormat.SHAREGPT: _from_sharegpt,
    DataFormat.TRL_PREFERENCE: _from_trl_preference,
    DataFormat.TRL_KTO: _from_kto,
    DataFormat.TEXT: _from_text,
}
