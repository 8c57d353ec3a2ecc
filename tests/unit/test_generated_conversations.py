"""Conversations that nobody wrote: of each that a family's chat template takes, every answer is learnt whole, behind
the prompt of a request, and nothing else is. Each message has words that no other has, to tell them apart.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from test_templates import NOTHING_TAKEN, WORD, examples_or_none, learnt_messages, requests, runs, words

import families
from families import TEMPLATES, TOOLS, stops_of, with_family
from tunewright.rows.chat import ChatEncoder

SEEDS = range(30)
LETTERS = "bcdfghjklmnpqrstvwxz"
FORMS = (
    "{}",
    "{} é {}",
    "  {}\n",
    "{}\n\n{}",
    '"{}"',
    "{} 😀 漢字",
    "<b>{}</b>",
    "{{{{ {} }}}}",
    '{}: {{"{}": 1}}',
)


class Writer:
    """Writes a conversation. `plain`: as every template takes it, without calls, text parts and `developer`."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.plain = seed % 2 == 0
        self._words = (f"y{a}y{b}y" for a in LETTERS for b in LETTERS)
        self._ids = count(1)

    def text(self) -> str:
        form = self.random.choice(FORMS)
        return form.format(*(next(self._words) for _ in range(form.count("{"))))

    def often(self, share: float = 0.5) -> bool:
        return self.random.random() < share

    def row(self) -> dict[str, Any]:
        messages = list(self._begin())
        for _ in range(self.random.choice((1, 1, 2, 3))):
            messages += self._turn()
        if self.often(0.2):
            messages.append(families.user(self.text()))
        has_calls = any("tool_calls" in message for message in messages)
        return {"messages": messages, **({"tools": TOOLS} if has_calls else {})}

    def _begin(self) -> Iterator[dict[str, Any]]:
        if self.often(0.3):
            yield {
                "role": "system" if self.plain else self.random.choice(("system", "developer")),
                "content": self.text(),
            }

    def _turn(self) -> Iterator[dict[str, Any]]:
        text = self.text()
        is_parts = not self.plain and self.often(0.2)
        yield families.user([{"type": "text", "text": text}] if is_parts else text)
        if not self.plain and self.often():
            ids = [f"call{next(self._ids):05}" for _ in range(self.random.choice((1, 1, 2)))]
            yield self._answer(
                self.text() if self.often(0.2) else None, tool_calls=[self._call(id) for id in ids]
            )
            for id in ids:
                yield {"role": "tool", "tool_call_id": id, "name": "weather", "content": self.text()}
        yield self._answer(self.text())

    def _answer(self, text: str | None, **fields: Any) -> dict[str, Any]:
        if self.often(0.3):
            fields[self.random.choice(("reasoning", "reasoning_content"))] = self.text()
        if self.often(0.2):
            fields["weight"] = self.random.choice((0, 1))
        if self.often(0.2):
            fields |= {"refusal": None, "audio": None}
        return families.said(text, **fields)

    def _call(self, id: str) -> dict[str, Any]:
        function = {"name": "weather", "arguments": json.dumps({"city": next(self._words)})}
        return {"id": id, "type": "function", "function": function}


@pytest.fixture(scope="module", params=["byte level", "SentencePiece"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return families.byte_level() if request.param == "byte level" else families.sentencepiece_like()


@pytest.mark.parametrize("name", TEMPLATES)
def test_whatever_is_taken_is_learnt_as_it_is_served(tokenizer: Any, name: str, tmp_path: Path) -> None:
    base = with_family(tokenizer, name, tmp_path)
    encoder = ChatEncoder(base)
    stops = set(base.convert_tokens_to_ids(stops_of(name)))
    taken = 0
    for seed in SEEDS:
        writer = Writer(seed)
        row = writer.row()
        examples = examples_or_none(encoder, row)
        if examples is None:
            continue
        taken += 1
        learnt = [run for example in examples for run in runs(example)]
        expected = learnt_messages(row)
        assert len(learnt) == len(expected), (seed, row)
        for (before, ids), (index, message) in zip(learnt, expected, strict=True):
            text = base.decode(ids)
            where = f"seed {seed}, messages[{index}]: {text!r} of {row}"
            assert ids[-1] in stops, where
            assert not stops & set(ids[:-1]), where
            found = set(WORD.findall(text))
            assert own(message) <= found, where
            others = {word for i, m in enumerate(row["messages"]) if i != index for word in own(m)}
            assert not others & found, where
            if writer.plain:
                assert base.decode(before) in requests(base, row["messages"][:index]), where
    assert taken or name in NOTHING_TAKEN


def own(message: dict[str, Any]) -> set[str]:
    """The words that only this message has."""
    return {word for word in words(message) if word.startswith("y") and word.endswith("y") and len(word) == 5}
