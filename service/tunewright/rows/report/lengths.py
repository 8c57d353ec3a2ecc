"""Lengths of rows, described: percentiles and a histogram. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from tunewright.plan.data_shape import percentile
from tunewright.rows.report.models import Bin, Lengths

PERCENTILES = (1, 5, 25, 50, 75, 90, 95, 99)
_BINS = 20


def described(lengths: Mapping[int, int], unit: Literal["characters", "tokens"]) -> Lengths | None:
    """`lengths` has the number of rows, or of examples, of each length. None where there are none."""
    number = sum(lengths.values())
    if not number:
        return None
    return Lengths(
        unit=unit,
        mean=round(sum(length * count for length, count in lengths.items()) / number, 1),
        percentiles={str(percent): percentile(lengths, percent) for percent in PERCENTILES},
        longest=max(lengths),
        histogram=histogram(lengths),
    )


def histogram(lengths: Mapping[int, int]) -> list[Bin]:
    """Up to 20 bins of the same width, a round number. The last one reaches to the longest, however long that is: a few
    very long rows would else leave one bar for all others."""
    longest = max(lengths)
    width = _round_up(max(1, percentile(lengths, 99)) / (_BINS - 1))
    number = min(_BINS, longest // width + 1)
    counts = [0] * number
    for length, count in lengths.items():
        counts[min(length // width, number - 1)] += count
    ends = [*range(width - 1, width * (number - 1), width), max(longest, width * number - 1)]
    return [
        Bin(start=index * width, end=end, count=count)
        for index, (end, count) in enumerate(zip(ends, counts, strict=True))
    ]


def _round_up(value: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    scale = 1
    while True:
        for step in (1, 2, 5):
            if step * scale >= value:
                return step * scale
        scale *= 10
