"""The task answers: the teacher answers what the rows ask, and its answers take the place of the rows' own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunewright.rows.canonical import Row, unlearnt
from tunewright.rows.cleaning.texts import key_of
from tunewright.synthesizer.duplicates import Compared
from tunewright.synthesizer.folder import SynthesisSpec
from tunewright.synthesizer.questions import (
    CHAT,
    COMPLETIONS,
    Asker,
    Dropped,
    Kept,
    SourceRow,
    answer_text,
    content_text,
)
from tunewright.synthesizer.tasks import AnswersTask

_ASKS = ("user", "tool", "function")


@dataclass(frozen=True)
class Prompt:
    """What a row asks, and the answer that it has to it."""

    messages: list[dict[str, Any]] | None
    text: str | None = None
    """In the place of messages."""
    tools: Row | None = None
    """`tools` and `parallel_tool_calls` of the row, where it has them."""
    expected: str = ""
    item: Row | None = None
    """All of a row of a prompt alone, for graders."""

    def said(self) -> str:
        """What is asked, for graders: the last message."""
        if self.messages is None:
            return self.text or ""
        return content_text(self.messages[-1].get("content")) if self.messages else ""


def prompt_of(row: Row) -> Prompt:
    """What a canonical row of any kind asks."""
    tools = _tools_of(row)
    if "text" in row:
        return Prompt(None, row["text"])
    if "item" in row:
        return Prompt(row["messages"], tools=tools, item=row["item"])
    if "messages" in row:
        messages = row["messages"]
        last = max(index for index, one in enumerate(messages) if _is_learnt(one))
        return Prompt(messages[:last], tools=tools, expected=content_text(messages[last].get("content")))
    is_good = row.get("label", True)
    answer: Any = row["chosen"] if "chosen" in row else row["completion"] if is_good else ""
    expected = answer if isinstance(answer, str) else content_text(answer[-1].get("content"))
    if isinstance(row["prompt"], str):
        return Prompt(None, row["prompt"], expected=expected)
    return Prompt(row["prompt"], tools=tools, expected=expected)


def _tools_of(row: Row) -> Row:
    return {name: row[name] for name in ("tools", "parallel_tool_calls") if row.get(name) is not None}


def _is_learnt(message: Row) -> bool:
    return bool(message["role"] == "assistant" and message.get("weight") != 0)


class Answers(Asker):
    def __init__(self, spec: SynthesisSpec, rows: Sequence[SourceRow], task: AnswersTask) -> None:
        super().__init__(spec, rows)
        self.task = task

    @property
    def wanted(self) -> int:
        return len(self.rows) * self.task.n

    def place(self, number: int) -> int:
        return self.rows[number // self.task.n].place

    def prompt(self, number: int) -> Prompt:
        return prompt_of(self.rows[number // self.task.n].row)

    def path(self, number: int) -> str:
        return COMPLETIONS if self._is_continued(self.prompt(number)) else CHAT

    def forms(self, number: int) -> Iterator[dict[str, Any]]:
        prompt = self.prompt(number)
        if self._is_continued(prompt):
            if not (prompt.text or "").strip():
                raise Dropped("no_prompt")
            before = f"{self.task.instructions}\n\n" if self.task.instructions else ""
            yield {"prompt": f"{before}{prompt.text}"}
            return
        messages = self._messages(prompt)
        if not any(one["role"] in _ASKS and one.get("content") for one in messages):
            raise Dropped("no_prompt")
        asked = [{name: part for name, part in one.items() if name != "weight"} for one in messages]
        yield {"messages": _instructed(asked, self.task.instructions), **(prompt.tools or {})}

    def made(self, number: int, kept: Kept) -> Row:
        text = answer_text(kept, keep_refusals=self.task.keep_refusals)
        prompt = self.prompt(number)
        if self._is_continued(prompt):
            return {"prompt": prompt.text, "completion": text}
        answer: Row = {"role": "assistant", "content": text}
        if kept.tool_calls:
            answer |= {"content": text or None, "tool_calls": _calls(kept.tool_calls)}
        return {"messages": [*unlearnt(self._messages(prompt)), answer], **(prompt.tools or {})}

    def compared(self, number: int, row: Row) -> Compared:
        """Answers to the same prompt with the same tools are compared with each other: the same answer to another one
        is none too many."""
        if "messages" not in row:
            return Compared({"completion": row["completion"]}, key_of({"prompt": row["prompt"]}))
        *before, answer = row["messages"]
        return Compared({"messages": [answer]}, key_of({"messages": before, **_tools_of(row)}))

    def source(self, row: Row) -> Compared | None:
        prompt = prompt_of(row)
        if not prompt.expected:
            return None
        if self._is_continued(prompt):
            return Compared({"completion": prompt.expected}, key_of({"prompt": prompt.text}))
        answer = {"role": "assistant", "content": prompt.expected}
        before = unlearnt(self._messages(prompt))
        return Compared({"messages": [answer]}, key_of({"messages": before, **(prompt.tools or {})}))

    def _is_continued(self, prompt: Prompt) -> bool:
        return prompt.messages is None and not self.spec.has_template

    @staticmethod
    def _messages(prompt: Prompt) -> list[dict[str, Any]]:
        if prompt.messages is None:
            return [{"role": "user", "content": prompt.text}]
        return prompt.messages


def _instructed(messages: list[dict[str, Any]], instructions: str | None) -> list[dict[str, Any]]:
    """The messages with instructions for the teacher, before those that the row has."""
    if instructions is None:
        return messages
    first, *rest = messages
    if first["role"] in ("system", "developer"):
        both = f"{instructions}\n\n{content_text(first.get('content'))}"
        return [{**first, "content": both}, *rest]
    return [{"role": "system", "content": instructions}, *messages]


def _calls(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls of tools with ids that are the same each time: the engine's are random."""
    return [
        {"id": f"call_{place}", "type": "function", "function": one.get("function")}
        for place, one in enumerate(calls)
    ]
