"""The task rows: the teacher is shown some rows of the file, and writes another one like them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

from tunewright.jobs.failure import TrainingFailed
from tunewright.rows.canonical import Row, is_labelled, is_preference, with_answer
from tunewright.synthesizer import texts
from tunewright.synthesizer.duplicates import Compared
from tunewright.synthesizer.folder import SynthesisSpec
from tunewright.synthesizer.questions import (
    Asker,
    Dropped,
    Kept,
    SourceRow,
    answer_object,
    answered_in,
    content_text,
    text_of,
)
from tunewright.synthesizer.tasks import MOST_REQUESTS, RowsTask

_AGAIN = 3
"""So many requests for each row that is wanted, at most: the others are for those that are dropped. Never more than
`MOST_REQUESTS`."""
_MOST_TURNS = 16
"""Of a new conversation: a grammar that counts to many more takes long to compile."""
_STRING = {"type": "string"}


class NewRows(Asker):
    def __init__(self, spec: SynthesisSpec, rows: Sequence[SourceRow], task: RowsTask) -> None:
        """Raises TrainingFailed where no row can be shown."""
        super().__init__(spec, rows)
        self.task = task
        examples = [shown for one in rows if (shown := _shown(one.row)) is not None]
        if not examples:
            raise TrainingFailed(
                "invalid_file",
                "no row can be shown to the teacher: those that can are texts, and conversations in which the user and "
                "the assistant take turns, without tools",
            )
        form = "turns" in examples[0][0]
        self._examples = [one for one in examples if ("turns" in one[0]) == form]
        self._most_turns = min(_MOST_TURNS, max(len(one.get("turns", ())) for one, _ in self._examples))

    @property
    def wanted(self) -> int:
        return self.task.count

    @property
    def most(self) -> int:
        return min(_AGAIN * self.task.count, MOST_REQUESTS)

    def place(self, number: int) -> int:
        return number + 1

    def forms(self, number: int) -> Iterator[dict[str, Any]]:
        examples = self._drawn(number)
        parts = [texts.NEW_ROW]
        if self.task.topics:
            parts.append(texts.ABOUT.format(topic=self.task.topics[number % len(self.task.topics)]))
        if self.task.instructions:
            parts.append(self.task.instructions)
        shown = len(examples)
        while shown:
            lines = "\n".join(json.dumps(one, ensure_ascii=False) for one, _ in examples[:shown])
            yield {
                "messages": [
                    {"role": "system", "content": "\n\n".join(parts)},
                    {"role": "user", "content": texts.EXAMPLES.format(lines=lines)},
                ],
                **answered_in("row", self._properties()),
            }
            shown //= 2

    def made(self, number: int, kept: Kept) -> Row:
        found = answer_object(kept)
        if not self._most_turns:
            names = list(self._properties())
            return {name: text_of(found.get(name)) for name in names}
        turns = found.get("turns")
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
            raise Dropped("invalid_json", "turns were asked for")
        messages = [
            {"role": role, "content": text_of(turn.get(role))}
            for turn in turns
            for role in ("user", "assistant")
        ]
        _, system = self._drawn(number)[0]
        return {"messages": [*system, *messages]}

    def compared(self, number: int, row: Row) -> Compared:
        return Compared(row)

    def source(self, row: Row) -> Compared | None:
        return Compared(_supervised(row))

    def _drawn(self, number: int) -> list[tuple[Row, list[Row]]]:
        """The examples of a request."""
        count = min(self.task.examples, len(self._examples))
        return random.Random(f"{self.spec.seed} {number}").sample(self._examples, count)

    def _properties(self) -> dict[str, Any]:
        """What an answer has to have, in JSON schema."""
        first, _ = self._examples[0]
        if "turns" not in first:
            return dict.fromkeys(first, _STRING)
        turn = {
            "type": "object",
            "properties": {"user": _STRING, "assistant": _STRING},
            "required": ["user", "assistant"],
            "additionalProperties": False,
        }
        return {"turns": {"type": "array", "items": turn, "minItems": 1, "maxItems": self._most_turns}}


def _supervised(row: Row) -> Row:
    """The row that teaches the better answer."""
    if is_preference(row):
        return with_answer(row, "chosen")
    return with_answer(row, "completion") if is_labelled(row) else row


def _shown(row: Row) -> tuple[Row, list[Row]] | None:
    """A row as the teacher sees it, and its system's message apart; None where it cannot be shown, and for an answer
    that is bad."""
    if row.get("label") is False or row.get("tools"):
        return None
    row = _supervised(row)
    if "messages" not in row:
        return row, []
    system = [one for one in row["messages"][:1] if one["role"] in ("system", "developer")]
    said = row["messages"][len(system) :]
    asked, answered = said[::2], said[1::2]
    is_plain = (
        len(asked) == len(answered)
        and all(one["role"] == "user" for one in asked)
        and all(one["role"] == "assistant" and not one.get("tool_calls") for one in answered)
    )
    if not is_plain:
        return None
    turns = [
        {"user": content_text(one.get("content")), "assistant": content_text(other.get("content"))}
        for one, other in zip(asked, answered, strict=True)
    ]
    return {"turns": turns}, system
