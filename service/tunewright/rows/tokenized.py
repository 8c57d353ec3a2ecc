"""Tokenized files: examples in an Arrow file that is mapped into memory, and their totals.

The file has a row for each example: `input_ids`, and `edges`, from which the labels follow (`rows.dataset.Block`).
"""

from __future__ import annotations

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
from tunewright.rows.counts import Counts
from tunewright.rows.dataset import Block, Integers, encoded_blocks, labels
from tunewright.rows.reading import Reading
from tunewright.rows.totals import Totals

_SCHEMA = pa.schema({"input_ids": pa.list_(pa.int32()), "edges": pa.list_(pa.int32())})
_BATCH_BYTES = 4 * 2**20
"""Bytes of tokens in a record batch: few enough to be held while it is written, and enough for few batches."""


class NothingUsable(TrainingFailed):
    """The file, or the part of it that is read, has no row to learn from."""


class TokenizedFile:
    """The examples of a file; none of them is in memory before it is asked for."""

    def __init__(self, entry: Used) -> None:
        self._entry = entry
        self.totals = entry.totals()

    def examples(self) -> Dataset:
        """The examples as they are on the disk."""
        return Dataset.from_file(str(self._entry.rows))

    def dataset(self) -> Dataset:
        """The examples, with `input_ids` and `labels`, as TRL takes them."""
        return self.examples().with_transform(with_labels)

    def close(self) -> None:
        """Stop keeping the entry from being removed."""
        self._entry.close()


def with_labels(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
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
            if writer.counts.too_long and truncation == "refuse":
                raise TrainingFailed("row_too_long", writer.counts.too_long_message(what))
            totals = writer.counts.totals()
            if not totals.examples:
                raise NothingUsable(f"invalid_{what}", _nothing_usable(totals))

    return TokenizedFile(cache.take(key, make, while_waiting=on_row))


class _Writer:
    """Writes the examples and the totals of a file into a folder."""

    def __init__(self, folder: Path, source: str, max_length: int) -> None:
        self._folder = folder
        self._file = pa.OSFile(str(folder / ROWS_FILE), "wb")
        self._stream = pa.ipc.new_stream(self._file, _SCHEMA)
        self._waiting = Block()
        self._waiting_bytes = 0
        self.counts = Counts(source, max_length)

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
            write_atomically(self._folder / TOTALS_FILE, self.counts.totals().model_dump_json())

    def add(self, block: Block) -> None:
        self.counts.add(block)
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


def _column(values: list[Integers]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(values)))


def _nothing_usable(totals: Totals) -> str:
    return (
        f"no usable row: in all {totals.rows} rows the answer lies beyond the maximum length of {totals.max_length} "
        "tokens; shorten what comes before it, or raise tuning.max_length (up to the base's context)"
    )
