"""Counts the blocks of a file as they are encoded. Holds numbers only, however large the file is."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from tunewright.rows.totals import Totals

if TYPE_CHECKING:
    from tunewright.rows.dataset import Block

_COUNTED = ("rows", "learnt", "truncated", "dropped", "identical", "lost")
MOST_LISTED = 10
"""Lines that messages and reports list of each kind."""


class Counts:
    """What the totals of a file are made of. `source` is the file's sha256."""

    def __init__(self, source: str, max_length: int) -> None:
        self._source = source
        self._max_length = max_length
        self._counts: Counter[str] = Counter()
        self._lengths: Counter[int] = Counter()
        self._whole_lengths: Counter[int] = Counter()
        self._longest = 0
        self._per_example = 1
        self._labels: Counter[bool] = Counter()
        self.too_long: dict[int, int] = {}
        """The first lines that are too long, and their tokens."""
        self._lines_too_long = 0
        self.faults: dict[int, str] = {}
        """The first lines that cannot be encoded, and why."""
        self.faulty = 0

    def add(self, block: Block) -> None:
        for name in _COUNTED:
            self._counts[name] += getattr(block, name)
        self._longest = max(self._longest, block.longest)
        self._per_example = max(self._per_example, block.per_example)
        self._labels.update(block.are_good)
        self._lengths.update(map(len, block.ids))
        self._whole_lengths.update(block.whole_lengths)
        self._lines_too_long += len(block.too_long)
        for line, tokens in block.too_long.items():
            if len(self.too_long) < MOST_LISTED:
                self.too_long[line] = tokens
        self.faulty += len(block.faults)
        for line, why in block.faults.items():
            if len(self.faults) < MOST_LISTED:
                self.faults[line] = why

    def totals(self) -> Totals:
        counts: dict[str, Any] = {name: self._counts[name] for name in _COUNTED}
        return Totals(
            **counts,
            source=self._source,
            max_length=self._max_length,
            examples=self._lengths.total() // self._per_example,
            per_example=self._per_example,
            good=self._labels[True] if self._labels else None,
            tokens=sum(length * number for length, number in self._lengths.items()),
            longest=self._longest,
            lengths=dict(sorted(self._lengths.items())),
            whole_lengths=dict(sorted(self._whole_lengths.items())),
            too_long=self.too_long,
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
