"""The texts of canonical rows: to look at, and to change."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tunewright.rows.canonical import Row, text_hash
from tunewright.rows.control_tokens import Change, changed_texts

_ANSWERS = ("completion", "chosen", "rejected", "text")
_SYSTEM = ("system", "developer")
_PROSE = frozenset(
    {"content", "text", "prompt", "completion", "chosen", "rejected", "reasoning", "reasoning_content"}
)


def said(row: Row) -> list[tuple[str, str]]:
    """(role, text) of all that is said in a row, in its order. A text by itself is the user's where it is a prompt,
    else the assistant's."""
    found: list[tuple[str, str]] = []
    for name in ("messages", "prompt", *_ANSWERS):
        value = row.get(name)
        if isinstance(value, str):
            found.append(("user" if name == "prompt" else "assistant", value))
        elif isinstance(value, list):
            for message in value:
                found += [(str(message.get("role")), text) for text in _content(message)]
    return found


def _content(message: Row) -> Iterator[str]:
    for name in ("reasoning", "reasoning_content", "content"):
        value = message.get(name)
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from (part["text"] for part in value if isinstance(part, dict) and "text" in part)


def prose(row: Row, *, with_system: bool = True) -> str:
    """All that is said, in one text. The system's message is often that of a whole file."""
    return "\n".join(text for role, text in said(row) if with_system or role not in _SYSTEM)


def answers(row: Row) -> list[str]:
    """The assistant's texts."""
    return [text for role, text in said(row) if role == "assistant"]


def changed_everywhere(row: Row, change: Change) -> Row:
    """The row with every text changed, those of tools and calls included; the same object where none changed."""
    made = {name: changed_texts(value, change) for name, value in row.items()}
    return row if all(made[name] is row[name] for name in row) else made


def changed_prose(row: Row, change: Change) -> Row:
    """The row with what is said changed, and nothing of tools and calls; the same object where none changed."""
    made = {name: _changed_said(name, value, change) for name, value in row.items()}
    return row if all(made[name] is row[name] for name in row) else made


def _changed_said(name: str, value: object, change: Change) -> object:
    if isinstance(value, str):
        return change(value) if name in _PROSE else value
    if not isinstance(value, list) or name in ("tools", "tool_calls"):
        return value
    made = [changed_prose(item, change) if isinstance(item, dict) else item for item in value]
    return value if all(new is old for new, old in zip(made, value, strict=True)) else made


def every_text(row: Row) -> list[str]:
    """Every text of a row, those of tools and calls included."""
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    changed_everywhere(row, note)
    return found


def said_and_called(row: Row) -> str:
    """What makes a row another one than the next: all that is in its messages, calls too, but for the system's, which
    are often those of a whole file, as tools are."""
    told = {
        name: [message for message in value if message.get("role") not in _SYSTEM]
        if isinstance(value, list)
        else value
        for name, value in row.items()
        if name != "tools"
    }
    return "\n".join(every_text(told))


def key_of(row: Row) -> int:
    """64 bits of the content of a row. The case of letters and the amount of white space do not count."""
    even = changed_everywhere(row, lambda text: " ".join(text.casefold().split()))
    return text_hash(json.dumps(even, sort_keys=True, ensure_ascii=False))
