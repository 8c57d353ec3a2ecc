"""The task paraphrases: what the user says is rewritten, and the answers stay."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tunewright.rows.canonical import Row
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
from tunewright.synthesizer.tasks import ParaphrasesTask


class Paraphrases(Asker):
    def __init__(self, spec: SynthesisSpec, rows: Sequence[SourceRow], task: ParaphrasesTask) -> None:
        super().__init__(spec, rows)
        self.task = task

    @property
    def wanted(self) -> int:
        return len(self.rows) * self.task.per_row

    def place(self, number: int) -> int:
        return self._source(number).place

    def forms(self, number: int) -> Iterator[dict[str, Any]]:
        row = self._source(number).row
        turns = len(_turns(row))
        if not turns:
            raise Dropped("no_prompt")
        manner = texts.MANNERS[number % self.task.per_row % len(texts.MANNERS)]
        told = texts.PARAPHRASE.format(manner=manner, turns=turns)
        if self.task.instructions:
            told = f"{told}\n\n{self.task.instructions}"
        yield {
            "messages": [
                {"role": "system", "content": told},
                {"role": "user", "content": json.dumps(_conversation(row), ensure_ascii=False)},
            ],
            **answered_in(
                "paraphrases",
                {
                    "turns": {
                        "type": "array",
                        "items": {"type": "string"},
                        "minItems": turns,
                        "maxItems": turns,
                    }
                },
            ),
        }

    def made(self, number: int, kept: Kept) -> Row:
        row = self._source(number).row
        found = answer_object(kept).get("turns")
        turns = len(_turns(row))
        if not isinstance(found, list) or len(found) != turns:
            raise Dropped("invalid_json", f"{turns} messages were asked for")
        return _with_turns(row, [text_of(one) for one in found])

    def compared(self, number: int, row: Row) -> Compared:
        return Compared(_asked(row))

    def source(self, row: Row) -> Compared | None:
        return Compared(_asked(row))

    def _source(self, number: int) -> SourceRow:
        return self.rows[number // self.task.per_row]


def _messages(row: Row) -> tuple[str, list[Row]] | None:
    """The field of a canonical row that has the messages before the answers, and these; None where it is a text."""
    name = "messages" if "messages" in row else "prompt"
    return (name, row[name]) if isinstance(row[name], list) else None


def _turns(row: Row) -> list[str]:
    """What the user says."""
    found = _messages(row)
    if found is None:
        return [row["prompt"]] if row["prompt"].strip() else []
    turns = [content_text(one.get("content")) for one in found[1] if one["role"] == "user"]
    return turns if all(turn.strip() for turn in turns) else []


def _with_turns(row: Row, turns: Sequence[str]) -> Row:
    """The row, with other messages of the user; of a prompt that is graded all of the row that graders know."""
    found = _messages(row)
    if found is None:
        return {**row, "prompt": turns[0]}
    name, messages = found
    rest = iter(turns)
    made = [{**one, "content": next(rest)} if one["role"] == "user" else one for one in messages]
    return {**row.get("item", row), name: made}


def _asked(row: Row) -> Row:
    """A row of what the user says, to compare."""
    return {"messages": [{"role": "user", "content": turn} for turn in _turns(row)]}


def _conversation(row: Row) -> list[dict[str, str]]:
    """All that is said in a row, for the teacher. Of two answers it sees the better one."""
    found = _messages(row)
    said = found[1] if found is not None else [{"role": "user", "content": row["prompt"]}]
    answer = row.get("chosen", row.get("completion"))
    if answer is not None:
        said = [*said, *(answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}])]
    return [{"role": one["role"], "content": content_text(one.get("content"))} for one in said]
