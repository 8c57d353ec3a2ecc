"""Several tokenized files as one data set, with weights, and the order in which an epoch has their examples.

The rule: the examples of each file are shuffled once, by the job's seed, and dealt from there on, round and round; an
epoch takes the next round(weight x examples) of each file (`plan.mixing.drawn`). So no example comes again before all
others of its file came, in one epoch or over several. Within an epoch the examples of all files are in random order.

Everything follows from the seed, the files and the number of the epoch: a job that goes on after a kill has the same
order. No file is copied: the data set maps them into memory beside each other, and the order is numbers of examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler

from tunewright.plan.data_shape import DataShape
from tunewright.plan.mixing import drawn, mixed_shape
from tunewright.rows.tokenized import TokenizedFile, lengths_of, with_labels
from tunewright.rows.totals import Totals

Indices = npt.NDArray[np.int64]

_WINDOW = 50
"""Batches in which examples are sorted by length: enough for batches of one length, and few enough for chance."""


@dataclass(frozen=True)
class Part:
    """A file of a mixture."""

    name: str
    file: TokenizedFile
    weight: float = 1.0

    @property
    def totals(self) -> Totals:
        return self.file.totals

    @property
    def drawn(self) -> int:
        """Examples of an epoch."""
        return drawn(self.weight, self.totals.examples)

    @cached_property
    def lengths(self) -> Indices:
        """Tokens of each example."""
        return lengths_of(self.file.examples())


class Mixture:
    """The files of a job and their weights. One file of the weight 1 is that file."""

    def __init__(self, parts: Sequence[Part], seed: int) -> None:
        self.parts = tuple(parts)
        self._seed = seed

    @property
    def is_plain(self) -> bool:
        """Whether every example of every file is there once."""
        return all(part.weight == 1 for part in self.parts)

    @property
    def examples(self) -> int:
        """Of an epoch."""
        return sum(part.drawn for part in self.parts)

    @property
    def longest(self) -> int:
        """Tokens of the longest example before the cut."""
        return max(part.totals.longest for part in self.parts)

    def shape(self) -> DataShape:
        """Of an epoch."""
        return mixed_shape([(part.totals.shape(), part.weight) for part in self.parts])

    @property
    def keys(self) -> list[str]:
        """The names of its files in the cache of tokens: the same keys, the same data set."""
        return [part.file.key for part in self.parts]

    def dataset(self, beside: Mapping[str, npt.NDArray[np.float32] | Sequence[str]] | None = None) -> Dataset:
        """The examples of all files, each once, with `input_ids` and `labels` (`TokenizedFile.dataset`). `beside`:
        further columns, with a number or a text for each example."""
        rows = concatenate_datasets([part.file.examples() for part in self.parts])
        if beside:
            rows = concatenate_datasets([rows, Dataset.from_dict(dict(beside))], axis=1)
        return rows.with_transform(with_labels)

    @property
    def distinct_tokens(self) -> int:
        """Of all examples, each once."""
        return sum(part.totals.tokens for part in self.parts)

    def tokens(self, epochs: int) -> int:
        """Tokens of so many epochs."""
        return sum(self.tokens_of(number, epochs) for number in range(len(self.parts)))

    def tokens_of(self, number: int, epochs: int) -> int:
        """Those of one of the files."""
        part = self.parts[number]
        rounds, rest = divmod(epochs * part.drawn, part.totals.examples)
        first = int(part.lengths[self._dealt(number)[:rest]].sum()) if rest else 0
        return rounds * part.totals.tokens + first

    def epoch(self, number: int, batch: int | None = None) -> Indices:
        """The examples of an epoch in their order, as numbers in `dataset()`. With `batch`, those of each batch of so
        many have about the same length."""
        begins = np.cumsum([0, *(part.totals.examples for part in self.parts)])
        found = []
        for index, part in enumerate(self.parts):
            places = np.arange(number * part.drawn, (number + 1) * part.drawn) % part.totals.examples
            found.append(begins[index] + self._dealt(index)[places])
        chance = np.random.default_rng([self._seed, len(self.parts), number])
        order: Indices = chance.permutation(np.concatenate(found))
        return order if batch is None else grouped(order, self._all_lengths, batch, chance)

    @cached_property
    def _all_lengths(self) -> Indices:
        return np.concatenate([part.lengths for part in self.parts])

    def _dealt(self, index: int) -> Indices:
        """The examples of a file in the order in which they are dealt."""
        return np.random.default_rng([self._seed, index]).permutation(self.parts[index].totals.examples)


def grouped(order: Indices, lengths: Indices, batch: int, chance: np.random.Generator) -> Indices:
    """The same examples, sorted by length within windows of batches; the batches of a window in random order. The batch
    with the longest example comes first: where memory runs out, it does at once."""
    windows = []
    for begin in range(0, len(order), _WINDOW * batch):
        window = order[begin : begin + _WINDOW * batch]
        window = window[np.argsort(-lengths[window], kind="stable")]
        whole = len(window) // batch * batch
        batches = chance.permutation(window[:whole].reshape(-1, batch))
        windows.append(np.concatenate([batches.reshape(-1), window[whole:]]))
    result: Indices = np.concatenate(windows)
    whole = len(result) // batch * batch
    if whole:
        place = int(np.argmax(lengths[result[:whole]])) // batch * batch
        first = result[:batch].copy()
        result[:batch] = result[place : place + batch]
        result[place : place + batch] = first
    return result


class EpochOrder(Sampler[int]):  # type: ignore[misc]
    """The order of a mixture's examples, as the Trainer's data loader asks for it: `set_epoch`, then an iteration."""

    def __init__(self, mixture: Mixture, batch: int | None = None) -> None:
        self._mixture = mixture
        self._batch = batch
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._mixture.examples

    def __iter__(self) -> Iterator[int]:
        return map(int, self._mixture.epoch(self._epoch, self._batch))
