"""What a plan needs to know of a file of rows: how many, and how long. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class DataShape:
    """The rows of a file as they are trained on."""

    rows: int
    examples: int
    """A chat row is several where the template rewrites what was said before."""
    tokens: int
    learnt_tokens: int
    lengths: tuple[int, ...]
    """Tokens of each example before it is cut."""

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0)

    @property
    def learnt(self) -> float:
        """The share of tokens that are learnt."""
        return self.learnt_tokens / self.tokens if self.tokens else 1.0

    def percentile(self, percent: float) -> int:
        """The length that so many percent of the examples do not exceed."""
        ordered = sorted(self.lengths)
        return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else 0

    def tokens_within(self, length: int) -> int:
        """Tokens that are left where examples are cut at `length`."""
        return sum(min(one, length) for one in self.lengths)

    def cut_at(self, length: int) -> int:
        """Examples that are longer than `length`."""
        return sum(one > length for one in self.lengths)


def data_shape(rows: int, examples: Sequence[tuple[int, int]]) -> DataShape:
    """Of `rows` rows whose examples have these (tokens, learnt tokens)."""
    lengths = tuple(length for length, _ in examples)
    return DataShape(rows, len(examples), sum(lengths), sum(learnt for _, learnt in examples), lengths)
