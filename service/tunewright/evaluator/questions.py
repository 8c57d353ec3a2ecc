"""The rows of an evaluation as requests: what is asked, and which answer is expected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.rows.canonical import is_preference, with_answer
from tunewright.rows.formats import read_rows
from tunewright.rows.reading import Reading


@dataclass(frozen=True)
class Question:
    """A row. Either `messages` (with `tools`) or `prompt` is what is asked."""

    place: int
    """In the file, from 1."""
    expected: str
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    prompt: str | None = None

    @property
    def path(self) -> str:
        return "/v1/completions" if self.messages is None else "/v1/chat/completions"

    def asked(self) -> dict[str, Any]:
        """What is asked, as fields of a request."""
        if self.messages is None:
            return {"prompt": self.prompt}
        return {"messages": self.messages, **({"tools": self.tools} if self.tools else {})}

    def forms(self) -> Iterator[dict[str, Any]]:
        """What is asked; behind it what is asked instead where a context has no room for that."""
        yield self.asked()

    def compared(self, answer: str) -> str:
        """The part of an answer that is compared with the expected one."""
        return answer

    def with_expected(self) -> dict[str, Any]:
        """The same with the expected answer behind it."""
        if self.messages is None:
            return {"prompt": f"{self.prompt}{self.expected}"}
        said = {"role": "assistant", "content": self.expected}
        return {**self.asked(), "messages": [*self.messages, said]}

    def text(self) -> str:
        """What is asked, for people: the last message."""
        return self.prompt or "" if self.messages is None else _text(self.messages[-1].get("content"))


def questions(file: Path, reading: Reading, numbers: frozenset[int]) -> Iterator[Question | None]:
    """The rows with these numbers in the order of the file; None for a row without an answer in words, such as one of
    tool calls. Raises InvalidData."""
    for number, (place, row) in enumerate(read_rows(file, reading)):
        if number in numbers:
            yield question_of(place, with_answer(row, "chosen") if is_preference(row) else row)


def question_of(place: int, row: dict[str, Any]) -> Question | None:
    """None for a row without an answer in words."""
    if "messages" not in row:
        return Question(place, row["completion"].strip(), prompt=row["prompt"])
    messages = row["messages"]
    learnt = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("weight") != 0
    ]
    last = learnt[-1]
    expected = _text(messages[last].get("content")).strip()
    if not expected or not last:
        return None
    asked = [{key: value for key, value in one.items() if key != "weight"} for one in messages[:last]]
    return Question(place, expected, messages=asked, tools=row.get("tools"))


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content if isinstance(content, str) else "" if content is None else json.dumps(content)
