"""Tokenized files: examples in an Arrow file that is mapped into memory, and their totals.

The file has a row for each example: `input_ids`, and `edges`, from which the labels follow (`rows.dataset.Block`); of a
pair both for each answer, with the prompt before it; of a labelled row also `label`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from tunewright.atomic import write_atomically
from tunewright.jobs.failure import TrainingFailed
from tunewright.rows.cache import ROWS_FILE, TOTALS_FILE, TokenCache, Used
from tunewright.rows.canonical import ANSWERS
from tunewright.rows.counts import Counts
from tunewright.rows.dataset import Block, Integers, encoded_blocks, labels
from tunewright.rows.reading import Reading
from tunewright.rows.totals import Totals

_COLUMNS = {
    1: (("input_ids", "edges", "labels"),),
    2: tuple((f"{name}_ids", f"{name}_edges", f"{name}_labels") for name in ANSWERS),
}
"""Of each sequence of an example, by their number: tokens and edges in the file, and the labels made of them."""
LABEL = "label"
"""The column of labelled rows that says whether an answer is good."""
_BATCH_BYTES = 4 * 2**20
"""Bytes of tokens in a record batch: few enough to be held while it is written, and enough for few batches."""


class NothingUsable(TrainingFailed):
    """The file, or the part of it that is read, has no row to learn from."""


class TokenizedFile:
    """The examples of a file; none of them is in memory before it is asked for."""

    def __init__(self, entry: Used) -> None:
        self._entry = entry
        self.totals = entry.totals()

    @property
    def key(self) -> str:
        """Its name in the cache: the same key, the same examples."""
        return self._entry.path.name

    def examples(self) -> Dataset:
        """The examples as they are on the disk."""
        return Dataset.from_file(str(self._entry.rows))

    def dataset(self) -> Dataset:
        """The examples, with `input_ids` and `labels`, as TRL takes them, of labelled rows with `label` beside; pairs
        have `chosen_ids`, `chosen_labels` and the same of `rejected`."""
        return self.examples().with_transform(with_labels)

    def close(self) -> None:
        """Stop keeping the entry from being removed."""
        self._entry.close()


def with_labels(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    made = dict(batch)
    for tokens, edges, name in _COLUMNS[1 if "input_ids" in batch else 2]:
        made[name] = [labels(*one) for one in zip(batch[tokens], made.pop(edges), strict=True)]
    return made


def lengths_of(examples: Dataset) -> npt.NDArray[np.int64]:
    """Tokens of each example, of a pair those of both sequences; read from the offsets in the Arrow file."""
    many = 1 if "input_ids" in examples.column_names else 2
    lengths = [
        pc.list_value_length(examples.data.column(tokens)).to_numpy() for tokens, _, _ in _COLUMNS[many]
    ]
    return np.asarray(sum(lengths), dtype=np.int64)


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
                path,
                tokenizer,
                max_length,
                reading=reading,
                what=what,
                on_row=on_row,
                splits=truncation == "split",
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
        self._stream: pa.RecordBatchStreamWriter | None = None
        """From the first example on: with it the columns are known."""
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
                if self._stream is not None:
                    self._stream.close()
        finally:
            self._file.close()
        if kind is None:
            write_atomically(self._folder / TOTALS_FILE, self.counts.totals().model_dump_json())

    def add(self, block: Block) -> None:
        self.counts.add(block)
        self._waiting.per_example = block.per_example
        self._waiting.ids += block.ids
        self._waiting.edges += block.edges
        self._waiting.are_good += block.are_good
        self._waiting_bytes += sum(ids.nbytes for ids in block.ids)
        if self._waiting_bytes >= _BATCH_BYTES:
            self._write_batch()

    def _write_batch(self) -> None:
        if self._waiting.ids:
            batch = _record_batch(self._waiting)
            if self._stream is None:
                self._stream = pa.ipc.new_stream(self._file, batch.schema)
            self._stream.write_batch(batch)
        self._waiting, self._waiting_bytes = Block(), 0


def _record_batch(block: Block) -> pa.RecordBatch:
    many = block.per_example
    columns: dict[str, pa.Array] = {LABEL: pa.array(block.are_good)} if block.are_good else {}
    for number, (tokens, edges, _) in enumerate(_COLUMNS[many]):
        columns[tokens] = _column(block.ids[number::many])
        columns[edges] = _column(block.edges[number::many])
    return pa.RecordBatch.from_pydict(columns)


def _column(values: list[Integers]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(values)))


def _nothing_usable(totals: Totals) -> str:
    if totals.identical:
        return (
            f"no usable row: in {totals.identical} of {totals.rows} rows both answers are the same within the maximum "
            f"length of {totals.max_length} tokens, and in the others nothing is left to learn; give answers that "
            "differ, or raise tuning.max_length (up to the base's context)"
        )
    return (
        f"no usable row: in all {totals.rows} rows the answer lies beyond the maximum length of {totals.max_length} "
        "tokens; shorten what comes before it, or raise tuning.max_length (up to the base's context)"
    )
