"""Encodes the rows of a data file, on all cores, as blocks of examples in the order of the file.

Neither the file nor its examples are ever in memory as a whole: the rows of a few blocks are, and their tokens.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from tunewright.jobs.failure import TrainingFailed
from tunewright.jobs.process import end_with
from tunewright.rows.canonical import is_graded, is_labelled, is_preference, texts
from tunewright.rows.examples import IGNORED, Example, Labelled, Pair, Row, UnusableRow, encode_text
from tunewright.rows.faults import InvalidData
from tunewright.rows.formats import read_rows
from tunewright.rows.preference import encode_labelled, encode_pair
from tunewright.rows.reading import Reading

if TYPE_CHECKING:
    from tunewright.rows.chat import ChatEncoder

Integers = npt.NDArray[np.int32]
Examples = Sequence[Example | Pair | Labelled]

_LARGE = 4 * 2**20
"""Bytes of a file from which on it is worth starting processes."""
_BLOCK_ROWS, _BLOCK_BYTES = 64, 2**20
"""Rows of a block, and bytes of pickled rows above which it has fewer."""
_BLOCKS_AHEAD = 4
"""Blocks for each process that are being encoded, or wait for their turn."""


class RowEncoder:
    """Makes examples of canonical rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._chat: ChatEncoder | None = None

    def examples(self, row: Row, what: str, line: int) -> Examples:
        """Those of a row, which is in line `line` of file `what`. Raises TrainingFailed, naming the line."""
        try:
            return self.encoded(row)
        except UnusableRow as error:
            raise TrainingFailed(f"invalid_{what}", f"{what}, line {line}: {error}") from error

    def encoded(self, row: Row) -> Examples:
        """Those of a row; of a preference row a pair, of a labelled row one with its label, of a graded row the prompt.
        Raises UnusableRow."""
        if is_graded(row):  # all of the prompt counts, so that none is cut without a word
            prompt = self._for_chat().prompt_tokens(row["messages"], row.get("tools"))
            return [Example(prompt, list(prompt))]
        if is_preference(row):
            return [encode_pair(row, self.supervised)]
        if is_labelled(row):
            return [encode_labelled(row, self.supervised)]
        return self.supervised(row)

    def supervised(self, row: Row) -> list[Example]:
        """Those of a row with answers to learn. Raises UnusableRow."""
        if "messages" not in row:
            return [encode_text(self._tokenizer, *texts(row))]
        return self._for_chat().examples(row)

    def prepare(self, row: Row) -> None:
        """Import what rows such as this one need, before processes are forked."""
        if "messages" in row or isinstance(row.get("prompt"), list):
            self._for_chat()

    def _for_chat(self) -> ChatEncoder:
        if self._chat is None:
            from tunewright.rows.chat import (
                ChatEncoder,  # imports vLLM's renderer, which text rows do not need
            )

            self._chat = ChatEncoder(self._tokenizer)
        return self._chat


@dataclass
class Block:
    """Examples of consecutive rows, cut at the maximum length, and what was counted (`rows.totals.Totals`).

    An example is one sequence of tokens, or as a pair two. A label is the token itself or -100, so that the spans with
    a loss say all: `edges` has the begin and the end of each, in tokens of its sequence.
    """

    ids: list[Integers] = field(default_factory=list)
    """The sequences of all examples: of pairs the chosen and the rejected one in turn."""
    edges: list[Integers] = field(default_factory=list)
    per_example: int = 1
    """Sequences of an example."""
    are_good: list[bool] = field(default_factory=list)
    """Of labelled rows: whether the answer of each example is good."""
    rows: int = 0
    learnt: int = 0
    truncated: int = 0
    dropped: int = 0
    identical: int = 0
    lost: int = 0
    longest: int = 0
    too_long: dict[int, int] = field(default_factory=dict)
    """Lines with an example that was cut, and the tokens of the longest one."""
    whole_lengths: list[int] = field(default_factory=list)
    """Tokens of each sequence before the cut."""
    faults: dict[int, str] = field(default_factory=dict)
    """Lines that cannot be encoded, and why."""

    def add(self, line: int, examples: Iterable[Example | Pair | Labelled], max_length: int) -> None:
        """Add a row."""
        self.rows += 1
        for example in examples:
            sequences = example.sequences
            self.per_example = len(sequences)
            lengths = [len(one.input_ids) for one in sequences]
            self.longest = max(self.longest, *lengths)
            self.whole_lengths += lengths
            if max(lengths) > max_length:
                self.truncated += 1
                self.too_long[line] = max(*lengths, self.too_long.get(line, 0))
            is_kept = self._add_cut([_cut(one, max_length) for one in sequences])
            if is_kept and isinstance(example, Labelled):
                self.are_good.append(example.is_good)

    def _add_cut(self, sequences: list[_Cut]) -> bool:
        """Add an example, unless nothing is left to learn: of a pair also where both answers are the same. False where
        nothing is."""
        self.lost += sum(one.lost for one in sequences)
        first, *others = sequences
        has_answers = all(one.learnt for one in sequences)
        is_identical = has_answers and any(np.array_equal(first.ids, other.ids) for other in others)
        if is_identical or not has_answers:
            self.dropped += 1
            self.identical += is_identical
            return False
        for one in sequences:
            self.learnt += one.learnt
            self.ids.append(one.ids)
            self.edges.append(one.edges)
        return True


class _Cut(NamedTuple):
    """A sequence up to the maximum length."""

    ids: Integers
    edges: Integers
    learnt: int
    """Tokens with a loss."""
    lost: int
    """Those beyond the maximum length."""


def _cut(sequence: Example, max_length: int) -> _Cut:
    has_loss = np.array(sequence.labels, dtype=np.int64) != IGNORED
    learnt = int(has_loss[1:max_length].sum())
    return _Cut(
        np.array(sequence.input_ids[:max_length], dtype=np.int32),
        _edges(has_loss[:max_length]),
        learnt,
        int(has_loss[1:].sum()) - learnt,
    )


def labels(ids: list[int], edges: list[int]) -> list[int]:
    """The labels of an example: its tokens between the edges, -100 elsewhere."""
    found = [IGNORED] * len(ids)
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        found[begin:end] = ids[begin:end]
    return found


def _edges(has_loss: npt.NDArray[np.bool_]) -> Integers:
    return np.flatnonzero(np.diff(has_loss, prepend=False, append=False)).astype(np.int32)


def encoded_blocks(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    reading: Reading = Reading(),
    what: str = "training_file",
    on_row: Callable[[], None] = lambda: None,
    refuses: bool = True,
    splits: bool = False,
) -> Iterator[Block]:
    """The rows of a file in their order; on all cores where the file is large. `what` is the file's name in messages.

    `on_row` is called for each row in the process that has encoded it. Raises TrainingFailed for the first row in the
    file that cannot be encoded, naming its line; where not `refuses`, such rows are in `Block.faults` instead.
    `splits`: long texts become several examples (`Example.pieces`).
    """
    encoder = _BlockEncoder(RowEncoder(tokenizer), max_length, what, on_row, refuses, splits)
    cores = len(os.sched_getaffinity(0))
    rows = _rows(path, reading, what)
    if cores == 1 or path.stat().st_size < _LARGE:
        yield from map(encoder, _packed(rows))
        return
    first = list(islice(rows, 1))
    for _, row in first:
        encoder.rows.prepare(row)
    pool = ProcessPoolExecutor(
        cores, multiprocessing.get_context("fork"), initializer=_begin, initargs=(encoder, os.getpid())
    )
    try:
        yield from _in_order(pool, _packed(chain(first, rows)), cores * _BLOCKS_AHEAD)
    finally:
        pool.shutdown(cancel_futures=True)


def _rows(path: Path, reading: Reading, what: str) -> Iterator[tuple[int, Row]]:
    """Raises TrainingFailed where the file is not the one that was checked."""
    try:
        yield from read_rows(path, reading)
    except InvalidData as error:
        raise TrainingFailed(f"invalid_{what}", f"{what}: {error}") from error


_Packed = list[tuple[int, bytes]]
"""Line numbers and pickled rows: pickled one by one, their size is known before a block is complete."""


def _packed(rows: Iterable[tuple[int, Row]]) -> Iterator[_Packed]:
    block: _Packed = []
    size = 0
    for line, row in rows:
        content = pickle.dumps(row)
        block.append((line, content))
        size += len(content)
        if len(block) >= _BLOCK_ROWS or size >= _BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _in_order(pool: ProcessPoolExecutor, packed: Iterable[_Packed], ahead: int) -> Iterator[Block]:
    """What the processes make of the blocks. At most `ahead` of them are under way, so that memory stays bounded."""
    under_way: deque[Future[Block]] = deque()
    for block in packed:
        if len(under_way) >= ahead:
            yield under_way.popleft().result()
        under_way.append(pool.submit(_encode, block))
    while under_way:
        yield under_way.popleft().result()


@dataclass
class _BlockEncoder:
    rows: RowEncoder
    max_length: int
    what: str
    on_row: Callable[[], None]
    refuses: bool
    splits: bool

    def __call__(self, packed: _Packed) -> Block:
        block = Block()
        for line, content in packed:
            row = pickle.loads(content)
            try:
                block.add(line, self._examples(row, line), self.max_length)
            except UnusableRow as error:
                block.rows += 1
                block.faults[line] = str(error)
            self.on_row()
        return block

    def _examples(self, row: Row, line: int) -> Examples:
        examples = self.rows.examples(row, self.what, line) if self.refuses else self.rows.encoded(row)
        if not self.splits:
            return examples
        return [piece for one in examples for piece in self._pieces(one)]

    def _pieces(self, example: Example | Pair | Labelled) -> Iterable[Example | Pair | Labelled]:
        return example.pieces(self.max_length) if isinstance(example, Example) else (example,)


_of_this_process: _BlockEncoder
"""In a process of the pool."""


def _begin(encoder: _BlockEncoder, parent: int) -> None:
    """The first thing in a process of the pool, which ends with its parent, also where that is killed."""
    global _of_this_process
    _of_this_process = encoder
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with(parent)


def _encode(packed: _Packed) -> Block:
    return _of_this_process(packed)
