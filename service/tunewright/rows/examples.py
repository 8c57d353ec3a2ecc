"""Examples to train on: tokens and labels, two answers to compare, or one that is good or bad; those of a text row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

IGNORED = -100
Row = dict[str, Any]


class UnusableRow(Exception):
    """A row that cannot be learnt as the model would be asked when it is served; the message says why."""


@dataclass(frozen=True)
class Example:
    """Token ids, and labels of the same length with -100 where there is no loss."""

    input_ids: list[int]
    labels: list[int]

    @classmethod
    def of(cls, prompt: list[int], answer: list[int]) -> Example:
        """Loss on the answer."""
        return cls(prompt + answer, [IGNORED] * len(prompt) + answer)

    def extended(self, prompt: list[int], answer: list[int]) -> Example | None:
        """This example and the next answer, whose prompt goes on from it; None where it does not."""
        known = len(self.input_ids)
        if prompt[:known] != self.input_ids:
            return None
        labels = [*self.labels, *([IGNORED] * (len(prompt) - known)), *answer]
        return Example(prompt + answer, labels)

    @property
    def sequences(self) -> tuple[Example, ...]:
        """What of it passes through the model."""
        return (self,)

    def pieces(self, length: int) -> Iterator[Example]:
        """A text without a prompt in examples of at most `length` tokens, each of which begins with the last token of
        the one before: so every token but the first is learnt once, behind what precedes it. Others stay whole."""
        if self.labels[:1] == [IGNORED] or len(self.input_ids) <= length:
            yield self
            return
        for begin in range(0, len(self.input_ids) - 1, length - 1):
            piece = slice(begin, begin + length)
            yield Example(self.input_ids[piece], self.labels[piece])


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt, of which the chosen one is better; each behind the prompt, with its labels."""

    chosen: Example
    rejected: Example

    @property
    def sequences(self) -> tuple[Example, ...]:
        return (self.chosen, self.rejected)


@dataclass(frozen=True)
class Labelled:
    """An answer to a prompt that is good or bad, behind the prompt."""

    answer: Example
    is_good: bool

    @property
    def sequences(self) -> tuple[Example, ...]:
        return (self.answer,)


def encode_text(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> Example:
    """Prompt, completion and the end-of-sequence token; loss on the last two.

    The prompt has the same tokens as in a request.
    """
    before = list(tokenizer(prompt)["input_ids"]) if prompt else []
    # Some tokenizers, such as T5's, end every text with the end-of-sequence token.
    if before and before[-1] == tokenizer.eos_token_id:
        before.pop()
    whole = list(tokenizer(prompt + completion)["input_ids"])
    ids = continuation(tokenizer, before, whole, completion)
    if tokenizer.eos_token_id is not None and (not ids or ids[-1] != tokenizer.eos_token_id):
        ids.append(tokenizer.eos_token_id)
    return Example.of(before, ids)


def continuation(
    tokenizer: PreTrainedTokenizerBase, before: list[int], whole: list[int], text: str
) -> list[int]:
    """The tokens of `text` after those of a prompt, `before`; `whole` are the tokens of both together.

    Where a token of the whole would cross the border between the two, the text is tokenized separately: after a line
    break, at whose end tokenizers cut, so that those of the SentencePiece kind do not put a space before it.
    """
    if whole[: len(before)] == before:
        return whole[len(before) :]
    anchor = list(tokenizer("\n", add_special_tokens=False)["input_ids"])
    anchored = list(tokenizer("\n" + text, add_special_tokens=False)["input_ids"])
    if anchor and anchored[: len(anchor)] == anchor:
        return anchored[len(anchor) :]
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
