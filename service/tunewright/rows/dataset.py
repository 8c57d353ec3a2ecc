"""Tokenizes a data file into examples, and counts those that were truncated or left out."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from tunewright.jobs.failure import TrainingFailed
from tunewright.rows.examples import IGNORED, Example, Row, UnusableRow, encode_text
from tunewright.rows.formats import read_rows
from tunewright.rows.reading import Reading

if TYPE_CHECKING:
    from tunewright.rows.chat import ChatEncoder

_LARGE = 4 * 2**20
"""Bytes of a file from which on it is worth starting processes."""
_CHUNK = 64
"""Rows that a process gets at a time."""
_MAX_LISTED = 10
"""Lines that an error message lists."""


@dataclass(frozen=True)
class TokenizedFile:
    examples: list[Example]
    rows: int
    """Rows of the file. A chat row is several examples where the template rewrites what was said before."""
    truncated: int
    """Examples cut at `max_length`."""
    dropped: int
    """Examples with nothing left to learn after the cut."""
    max_length: int

    @property
    def tokens(self) -> int:
        return sum(len(example.input_ids) for example in self.examples)

    def describe(self) -> str:
        text = f"{self.rows} rows, {self.tokens} tokens"
        if len(self.examples) + self.dropped > self.rows:
            text += f" in {len(self.examples)} examples (the chat template rewrites earlier turns)"
        if self.truncated:
            text += f", {self.truncated} truncated to {self.max_length} tokens"
        if self.dropped:
            text += f", {self.dropped} left out (nothing to learn within the maximum length)"
        return text


class RowEncoder:
    """Makes examples of rows of both formats."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._chat: ChatEncoder | None = None

    def examples(self, row: Row, what: str, line: int) -> list[Example]:
        """Those of a row, which is in line `line` of file `what`. Raises TrainingFailed, naming the line."""
        if "messages" not in row:
            return [encode_text(self._tokenizer, row["prompt"], row["completion"])]
        try:
            return self._for_chat().examples(row)
        except UnusableRow as error:
            raise TrainingFailed(f"invalid_{what}", f"{what}, line {line}: {error}") from error

    def prepare(self) -> None:
        """Import what chat rows need, before processes are forked."""
        if self._tokenizer.chat_template is not None:
            self._for_chat()

    def _for_chat(self) -> ChatEncoder:
        if self._chat is None:
            from tunewright.rows.chat import (
                ChatEncoder,  # imports vLLM's renderer, which text rows do not need
            )

            self._chat = ChatEncoder(self._tokenizer)
        return self._chat


def tokenize_file(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    reading: Reading = Reading(),
    truncation: str = "truncate",
    what: str = "training_file",
    on_row: Callable[[], None] = lambda: None,
) -> TokenizedFile:
    """The examples of a file, cut at `max_length` tokens. `what` is the file's name in messages.

    Raises TrainingFailed, naming the line, where a row cannot be encoded or, with `truncation` "refuse", is longer than
    `max_length`; also where no row is usable.
    """
    examples = []
    too_long: dict[int, int] = {}
    rows = truncated = dropped = 0
    for line, found in _encoded(path, reading, tokenizer, what):
        on_row()
        rows += 1
        for example in found:
            length = len(example.input_ids)
            if length > max_length:
                truncated += 1
                too_long[line] = max(length, too_long.get(line, 0))
                example = Example(example.input_ids[:max_length], example.labels[:max_length])
            if all(label == IGNORED for label in example.labels[1:]):
                dropped += 1
                continue
            examples.append(example)
    if too_long and truncation == "refuse":
        raise TrainingFailed("row_too_long", _too_long_message(list(too_long.items()), what, max_length))
    if not examples:
        raise TrainingFailed(
            f"invalid_{what}",
            f"no usable row: in all {rows} rows the answer lies beyond the maximum length of {max_length} tokens; "
            "shorten what comes before it, or raise tuning.max_length (up to the base's context)",
        )
    return TokenizedFile(examples, rows, truncated, dropped, max_length)


def _encoded(
    path: Path, reading: Reading, tokenizer: PreTrainedTokenizerBase, what: str
) -> Iterator[tuple[int, list[Example]]]:
    """(line, examples) of each row, in their order; on all cores where the file is large."""
    encoder = RowEncoder(tokenizer)
    cores = len(os.sched_getaffinity(0))
    if cores == 1 or path.stat().st_size < _LARGE:
        for line, row in read_rows(path, reading):
            yield line, encoder.examples(row, what, line)
        return
    encoder.prepare()
    with multiprocessing.get_context("fork").Pool(cores, _use, (encoder, what)) as pool:
        yield from pool.imap(_encode, read_rows(path, reading), chunksize=_CHUNK)


_of_this_process: tuple[RowEncoder, str]
"""In a process of the pool."""


def _use(encoder: RowEncoder, what: str) -> None:
    global _of_this_process
    _of_this_process = encoder, what
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _encode(numbered: tuple[int, Row]) -> tuple[int, list[Example]]:
    encoder, what = _of_this_process
    line, row = numbered
    return line, encoder.examples(row, what, line)


def _too_long_message(rows: list[tuple[int, int]], what: str, max_length: int) -> str:
    """The error message for `rows`, given as (line, tokens)."""
    listed = ", ".join(f"line {line} has {tokens} tokens" for line, tokens in rows[:_MAX_LISTED])
    more = f" and {len(rows) - _MAX_LISTED} more lines are too long" if len(rows) > _MAX_LISTED else ""
    return (
        f"{what}: {listed}{more}; the maximum is {max_length}. Shorten them, raise tuning.max_length (up to the base's "
        "context), or have them cut with tuning.truncation truncate"
    )
