"""What a plan needs to know of a file of rows: how many, and how long. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class DataShape:
    """The rows of a file as they are trained on."""

    rows: int
    examples: int
    """A chat row is several where the template rewrites what was said before."""
    tokens: int
    learnt_tokens: int
    lengths: Mapping[int, float]
    """Number of examples of each length in tokens, before they are cut; of a part of a file a share of that."""
    counted: int | None = None
    """Rows that were tokenized, where the others are taken to be like these; None: all."""
    left_out: Mapping[int, float] = field(default_factory=dict)
    """Of `lengths` those, after the cut, of examples of which nothing is left to learn. They are not among
    `examples`."""

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0)

    @property
    def learnt(self) -> float:
        """The share of tokens that are learnt."""
        return self.learnt_tokens / self.tokens if self.tokens else 1.0

    def percentile(self, percent: float) -> int:
        """The length that so many percent of the examples do not exceed."""
        return percentile(self.lengths, percent)

    def tokens_within(self, length: int) -> int:
        """Tokens that are left where examples are cut at `length`."""
        return round(_within(self.lengths, length) - _within(self.left_out, length))

    def cut_at(self, length: int) -> int:
        """Examples that are longer than `length`."""
        return round(sum(number for one, number in self.lengths.items() if one > length))

    def padding(self, batch: int, max_length: int) -> float:
        """The share of the tokens of batches of so many examples, drawn by chance and cut at `max_length`, that is
        padding, as expected."""
        count = sum(self.lengths.values())
        if batch == 1 or not count:
            return 0.0
        cut: defaultdict[int, float] = defaultdict(float)
        for length, number in self.lengths.items():
            cut[min(length, max_length)] += number
        mean = sum(length * number for length, number in cut.items()) / count
        longest = below = 0.0
        for length in sorted(cut):
            up_to = below + cut[length] / count
            longest += length * (up_to**batch - below**batch)
            below = up_to
        return 1 - mean / longest


def extrapolated(shape: DataShape, rows: float) -> DataShape:
    """The shape of so many rows, of which those of `shape` are the first."""
    factor = rows / shape.rows
    return DataShape(
        rows=round(rows),
        examples=round(factor * shape.examples),
        tokens=round(factor * shape.tokens),
        learnt_tokens=round(factor * shape.learnt_tokens),
        lengths={length: factor * number for length, number in shape.lengths.items()},
        counted=shape.rows,
        left_out={length: factor * number for length, number in shape.left_out.items()},
    )


def _within(lengths: Mapping[int, float], limit: int) -> float:
    """Tokens of so many examples of each length, cut at the limit."""
    return sum(min(length, limit) * number for length, number in lengths.items())


def percentile(lengths: Mapping[int, float], percent: float) -> int:
    """The length that so many percent do not exceed; `lengths` has the number of each."""
    wanted = max(1, math.ceil(sum(lengths.values()) * percent / 100))
    seen = 0.0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= wanted:
            return length
    return 0


def data_shape(rows: int, examples: Sequence[tuple[int, int]]) -> DataShape:
    """Of `rows` rows whose examples have these (tokens, learnt tokens)."""
    lengths = Counter(length for length, _ in examples)
    tokens = sum(length for length, _ in examples)
    return DataShape(rows, len(examples), tokens, sum(learnt for _, learnt in examples), lengths)
