"""Tokenized files: examples in an Arrow file that is mapped into memory, and their totals.

The file has a row for each example: `input_ids`, and `edges`, from which the labels follow (`rows.dataset.Block`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from tunewright.atomic import write_atomically
from tunewright.jobs.failure import TrainingFailed
from tunewright.rows.cache import ROWS_FILE, TOTALS_FILE, TokenCache, Used
from tunewright.rows.dataset import Block, Integers, encoded_blocks, labels
from tunewright.rows.reading import Reading
from tunewright.rows.totals import Totals

_SCHEMA = pa.schema({"input_ids": pa.list_(pa.int32()), "edges": pa.list_(pa.int32())})
_BATCH_BYTES = 4 * 2**20
"""Bytes of tokens in a record batch: few enough to be held while it is written, and enough for few batches."""
_COUNTED = ("rows", "learnt", "truncated", "dropped", "lost")
_MAX_LISTED = 10
"""Lines that an error message lists."""


class TokenizedFile:
    """The examples of a file; none of them is in memory before it is asked for."""

    def __init__(self, entry: Used) -> None:
        self._entry = entry
        self.totals = entry.totals()

    def dataset(self) -> Dataset:
        """The examples, with `input_ids` and `labels`, as TRL takes them."""
        return Dataset.from_file(str(self._entry.rows)).with_transform(_with_labels)

    def close(self) -> None:
        """Stop keeping the entry from being removed."""
        self._entry.close()


def _with_labels(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    ids = batch["input_ids"]
    return {
        "input_ids": ids,
        "labels": [labels(*example) for example in zip(ids, batch["edges"], strict=True)],
    }


def tokenize_file(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    cache: TokenCache,
    key: str,
    source: str,
    reading: Reading = Reading(),
    truncation: str = "truncate",
    what: str = "training_file",
    on_row: Callable[[], None] = lambda: None,
) -> TokenizedFile:
    """The examples of a file, cut at `max_length` tokens: those in the cache under `key` (`rows.cache.cache_key`), or
    new ones. `source` is the file's sha256, `what` its name in messages.

    `on_row` is called for each row and while another process tokenizes the same. Raises TrainingFailed, naming the
    line, where a row cannot be encoded or, with `truncation` "refuse", is longer than `max_length`; also where no row
    is usable.
    """

    def make(folder: Path) -> None:
        with _Writer(folder, source, max_length) as writer:
            for block in encoded_blocks(
                path, tokenizer, max_length, reading=reading, what=what, on_row=on_row
            ):
                writer.add(block)
            if writer.too_long and truncation == "refuse":
                raise TrainingFailed("row_too_long", writer.too_long_message(what))
            if not writer.totals().examples:
                raise TrainingFailed(f"invalid_{what}", _nothing_usable(writer.totals()))

    return TokenizedFile(cache.take(key, make, while_waiting=on_row))


class _Writer:
    """Writes the examples and the totals of a file into a folder."""

    def __init__(self, folder: Path, source: str, max_length: int) -> None:
        self._folder = folder
        self._file = pa.OSFile(str(folder / ROWS_FILE), "wb")
        self._stream = pa.ipc.new_stream(self._file, _SCHEMA)
        self._waiting = Block()
        self._waiting_bytes = 0
        self._counts: Counter[str] = Counter()
        self._lengths: Counter[int] = Counter()
        self._longest = 0
        self._source = source
        self._max_length = max_length
        self.too_long: dict[int, int] = {}
        """The first lines that are too long, and their tokens."""
        self._lines_too_long = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._write_batch()
                self._stream.close()
        finally:
            self._file.close()
        if kind is None:
            write_atomically(self._folder / TOTALS_FILE, self.totals().model_dump_json())

    def add(self, block: Block) -> None:
        for name in _COUNTED:
            self._counts[name] += getattr(block, name)
        self._longest = max(self._longest, block.longest)
        self._lines_too_long += len(block.too_long)
        for line, tokens in block.too_long.items():
            if len(self.too_long) < _MAX_LISTED:
                self.too_long[line] = tokens
        self._lengths.update(map(len, block.ids))
        self._waiting.ids += block.ids
        self._waiting.edges += block.edges
        self._waiting_bytes += sum(ids.nbytes for ids in block.ids)
        if self._waiting_bytes >= _BATCH_BYTES:
            self._write_batch()

    def _write_batch(self) -> None:
        if self._waiting.ids:
            columns = [_column(self._waiting.ids), _column(self._waiting.edges)]
            self._stream.write_batch(pa.record_batch(columns, schema=_SCHEMA))
        self._waiting, self._waiting_bytes = Block(), 0

    def totals(self) -> Totals:
        counts: dict[str, Any] = {name: self._counts[name] for name in _COUNTED}
        return Totals(
            **counts,
            source=self._source,
            max_length=self._max_length,
            examples=self._lengths.total(),
            tokens=sum(length * number for length, number in self._lengths.items()),
            longest=self._longest,
            lengths=dict(sorted(self._lengths.items())),
        )

    def too_long_message(self, what: str) -> str:
        """The error message for rows that may not be cut."""
        listed = ", ".join(f"line {line} has {tokens} tokens" for line, tokens in self.too_long.items())
        more = self._lines_too_long - len(self.too_long)
        rest = f" and {more} more lines are too long" if more else ""
        return (
            f"{what}: {listed}{rest}; the maximum is {self._max_length}. Shorten them, raise tuning.max_length (up to "
            "the base's context), or have them cut with tuning.truncation truncate"
        )


def _column(values: list[Integers]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(values)))


def _nothing_usable(totals: Totals) -> str:
    return (
        f"no usable row: in all {totals.rows} rows the answer lies beyond the maximum length of {totals.max_length} "
        "tokens; shorten what comes before it, or raise tuning.max_length (up to the base's context)"
    )
