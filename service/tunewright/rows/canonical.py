"""The canonical rows, one form for each kind of training, and their checks. Rows of every format become one of these.

    chat               {"messages": [...], "tools": [...]?, "parallel_tool_calls": ...?}
    prompt_completion  {"prompt": "...", "completion": "..."}
    preference         {"prompt": ..., "chosen": ..., "rejected": ..., "tools": [...]?}: texts, or lists of messages
    labelled           {"prompt": ..., "completion": ..., "label": true, "tools": [...]?}: the same
    graded             {"messages": [...], "item": {...}, "tools": [...]?}
    text               {"text": "..."}

Null is the same as absent, as in what the openai client's `model_dump()` writes.
"""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import Any

from tunewright.rows.faults import RowFault, check_levels, json_type, refuse_constant

Row = dict[str, Any]
ANSWERS = ("chosen", "rejected")
"""The fields of a preference row with the better answer and the other one."""
ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class RowKind(StrEnum):
    """What can be learnt from a row."""

    CHAT = "chat"
    """The assistant's messages of a conversation."""
    PROMPT_COMPLETION = "prompt_completion"
    """The continuation of a text."""
    PREFERENCE = "preference"
    """That of two answers one is better."""
    LABELLED = "labelled"
    """That an answer is good, or bad."""
    GRADED = "graded"
    """A prompt, whose answers are made while it is trained on, and graded; the item is the whole row."""
    TEXT = "text"
    """All of a text."""


def check_chat(row: Row) -> None:
    """Raises RowFault."""
    _check_tools(row.get("tools"))
    messages = _some_messages(row.get("messages"), "messages")
    if not check_messages(messages, "messages"):
        raise RowFault("no assistant message to learn from (with weight 1): add what the model should answer")


def check_text(row: Row) -> None:
    """Raises RowFault."""
    for key in ("prompt", "completion"):
        if key not in row:
            raise RowFault(f'"{key}" is missing')
        if not isinstance(row[key], str):
            raise RowFault(f'"{key}" must be a string, not {json_type(row[key])}')
    if not row["completion"]:
        raise RowFault('"completion" is empty: there is nothing to learn')


def check_answers(row: Row, *names: str) -> None:
    """Check a row with a prompt and the answers `names` to it, texts or messages. Raises RowFault."""
    _check_tools(row.get("tools"))
    is_text = isinstance(row.get("prompt"), str)
    if not is_text:
        check_messages(_some_messages(row.get("prompt"), "prompt"), "prompt")
    for name in names:
        answer = row.get(name)
        if answer is None:
            raise RowFault(f'"{name}" is missing')
        if not answer:
            raise RowFault(f'"{name}" is empty: there is nothing to learn')
        if is_text and not isinstance(answer, str):
            raise RowFault(f'"{name}" must be a string as "prompt" is, not {json_type(answer)}')
        if not is_text and not check_messages(_some_messages(answer, name), name):
            raise RowFault(f'"{name}" has no message of the assistant')


def _some_messages(value: object, name: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise RowFault(f'"{name}" must be a list with at least one message')
    return value


def check_messages(messages: list[Any], name: str) -> bool:
    """Whether the assistant says something to learn in them. Raises RowFault; `name` is the list's in messages."""
    learnable = False
    for index, message in enumerate(messages):
        where = f"{name}[{index}]"
        if not isinstance(message, dict):
            raise RowFault(f"{where} must be an object, not {json_type(message)}")
        role = message.get("role")
        if role not in ROLES:
            raise RowFault(f"{where}.role must be one of {', '.join(ROLES)}; got {_shown(role)}")
        calls = message.get("tool_calls")
        if message.get("function_call") is not None:
            raise RowFault(
                f"{where}.function_call is OpenAI's older form, which no chat template has: use tool_calls"
            )
        if role == "assistant":
            weight = message.get("weight")
            if weight not in (0, 1, None) or isinstance(weight, bool):
                raise RowFault(f"{where}.weight must be 0 or 1")
            learnable = learnable or weight != 0
            _check_tool_calls(calls, where)
            if message.get("content") is None and not calls and isinstance(message.get("refusal"), str):
                raise RowFault(
                    f"{where} has a refusal and no content: write what should be answered as its content"
                )
        elif calls:
            raise RowFault(f"{where} has tool_calls, but only the assistant calls tools")
        _check_content(message.get("content"), where, may_be_missing=role == "assistant" and bool(calls))
    return learnable


def _shown(value: object) -> str:
    try:
        return json.dumps(value)[:100]
    except RecursionError:
        return json_type(value)


def _check_content(content: object, where: str, *, may_be_missing: bool) -> None:
    if isinstance(content, str):
        return
    if content is None:
        if not may_be_missing:
            raise RowFault(f"{where}.content is missing")
        return
    if isinstance(content, list):
        for part in content:
            if not (
                isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            ):
                raise RowFault(f"{where}.content may only have parts of type text")
        return
    raise RowFault(f"{where}.content must be a string, not {json_type(content)}")


def _check_tools(tools: object) -> None:
    if tools is None:
        return
    if not isinstance(tools, list):
        raise RowFault('"tools" must be a list')
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowFault(f"tools[{index}].function.name is missing")


def _check_tool_calls(calls: object, where: str) -> None:
    if calls is None or calls == []:
        return
    if not isinstance(calls, list):
        raise RowFault(f"{where}.tool_calls must be a list")
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowFault(f"{where}.tool_calls[{index}].function.name is missing")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                parsed = json.loads(arguments or "{}", parse_constant=refuse_constant)
                check_levels(parsed)
            except RowFault as fault:
                raise RowFault(f"{where}.tool_calls[{index}].function.arguments: {fault}") from None
            except (ValueError, RecursionError):
                raise RowFault(f"{where}.tool_calls[{index}].function.arguments is not valid JSON") from None
            if not isinstance(parsed, dict):
                raise RowFault(
                    f"{where}.tool_calls[{index}].function.arguments must be a JSON object, not {json_type(parsed)}"
                )
        elif not isinstance(arguments, dict | None):
            raise RowFault(f"{where}.tool_calls[{index}].function.arguments must be a JSON string")


def unlearnt(messages: list[Row]) -> list[Row]:
    """Messages of a prompt: what the assistant said in them is not learnt."""
    return [{**message, "weight": 0} if message["role"] == "assistant" else message for message in messages]


def check_graded(row: Row) -> None:
    """Raises RowFault."""
    _check_tools(row.get("tools"))
    check_messages(_some_messages(row.get("messages"), "messages"), "messages")


def texts(row: Row) -> tuple[str, str]:
    """The prompt and the completion of a row of texts; all of a `text` row is a completion."""
    return ("", row["text"]) if "text" in row else (row["prompt"], row["completion"])


def is_graded(row: Row) -> bool:
    """Whether a canonical row is a prompt whose answers are graded."""
    return "item" in row


def is_preference(row: Row) -> bool:
    """Whether a canonical row has two answers to compare."""
    return "chosen" in row


def is_labelled(row: Row) -> bool:
    """Whether a canonical row has an answer that is good or bad."""
    return "label" in row


def with_answer(row: Row, name: str) -> Row:
    """The supervised row that teaches one of the answers: `chosen` or `rejected`, of a labelled row `completion`."""
    prompt, answer = row["prompt"], row[name]
    if isinstance(prompt, str):
        return {"prompt": prompt, "completion": answer}
    made: dict[str, Any] = {"messages": [*unlearnt(prompt), *answer]}
    return made | {key: part for key, part in row.items() if key == "tools"}


def text_hash(text: str) -> int:
    """64 bits, the same in every process: by these rows are compared and chosen."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
