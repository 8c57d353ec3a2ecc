"""Tokenizes a data file into examples, and counts the rows that were truncated or left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tunewright.jobs.failure import TrainingFailed
from tunewright.rows.formats import read_rows
from tunewright.rows.masking import IGNORED, Example, MaskingError, Row, encode_chat, encode_text

_MAX_LISTED = 10
"""Lines that an error message lists."""


@dataclass(frozen=True)
class TokenizedFile:
    examples: list[Example]
    truncated: int
    """Rows cut at `max_length`."""
    dropped: int
    """Rows with nothing left to learn after the cut."""
    max_length: int

    @property
    def tokens(self) -> int:
        return sum(len(example.input_ids) for example in self.examples)

    def describe(self) -> str:
        text = f"{len(self.examples)} rows, {self.tokens} tokens"
        if self.truncated:
            text += f", {self.truncated} truncated to {self.max_length} tokens"
        if self.dropped:
            text += f", {self.dropped} left out (nothing to learn within the maximum length)"
        return text


def tokenize_file(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    truncation: str = "truncate",
    what: str = "training_file",
    on_row: Callable[[], None] = lambda: None,
) -> TokenizedFile:
    """The examples of a file, cut at `max_length` tokens. `what` is the file's name in messages.

    Raises TrainingFailed, naming the line, where a row cannot be encoded or, with `truncation` "refuse", is longer than
    `max_length`; also where no row is usable.
    """
    examples = []
    too_long: list[tuple[int, int]] = []
    dropped = 0
    for line, row in read_rows(path):
        on_row()
        example = encode_row(tokenizer, row, what, line)
        if len(example.input_ids) > max_length:
            too_long.append((line, len(example.input_ids)))
            example = Example(example.input_ids[:max_length], example.labels[:max_length])
        if all(label == IGNORED for label in example.labels[1:]):
            dropped += 1
            continue
        examples.append(example)
    if too_long and truncation == "refuse":
        raise TrainingFailed("row_too_long", _too_long_message(too_long, what, max_length))
    if not examples:
        raise TrainingFailed(
            f"invalid_{what}",
            f"no usable row: in all {dropped} rows the answer lies beyond the maximum length of {max_length} tokens; "
            "shorten what comes before it, or raise tuning.max_length (up to the base's context)",
        )
    return TokenizedFile(examples, len(too_long), dropped, max_length)


def encode_row(tokenizer: PreTrainedTokenizerBase, row: Row, what: str, line: int) -> Example:
    """The tokens of a row, which is in line `line` of file `what`. Raises TrainingFailed, naming the line."""
    try:
        if "messages" in row:
            return encode_chat(tokenizer, row)
        return encode_text(tokenizer, row["prompt"], row["completion"])
    except MaskingError as error:
        raise TrainingFailed("invalid_chat_template", f"{what}, line {line}: {error}") from error
    except Exception as error:  # templates raise all kinds of exceptions for what they do not support
        raise TrainingFailed(
            f"invalid_{what}", f"line {line}: the chat template refused it: {error}"
        ) from error


def _too_long_message(rows: list[tuple[int, int]], what: str, max_length: int) -> str:
    """The error message for `rows`, given as (line, tokens)."""
    listed = ", ".join(f"line {line} has {tokens} tokens" for line, tokens in rows[:_MAX_LISTED])
    more = f" and {len(rows) - _MAX_LISTED} more lines are too long" if len(rows) > _MAX_LISTED else ""
    return (
        f"{what}: {listed}{more}; the maximum is {max_length}. Shorten them, raise tuning.max_length (up to the base's "
        "context), or have them cut with tuning.truncation truncate"
    )
