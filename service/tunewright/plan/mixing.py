"""What an epoch has of each of several files with weights. Pure.

A file of n examples and the weight w has round(w x n) of them in an epoch, at least one: 1 is each once, 2 each twice,
0.5 half of them. `rows.mixture` says which.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.plan.data_shape import DataShape


@dataclass(frozen=True)
class FileShape:
    """A file of a plan."""

    name: str
    weight: float
    shape: DataShape


def drawn(weight: float, count: int) -> int:
    """How many of a file's `count` rows or examples an epoch has; halves are rounded up."""
    return max(1, math.floor(weight * count + 0.5)) if count else 0


def distinct(weight: float, count: int) -> int:
    """How many different ones these are."""
    return min(count, drawn(weight, count))


def mixed_shape(files: Sequence[tuple[DataShape, float]]) -> DataShape:
    """The shape of an epoch of files with weights. Its `rows` are different ones: what repeated rows add is no data.
    Tokens and lengths of a file of which an epoch has a part are its part of all of them."""
    if len(files) == 1 and files[0][1] == 1:
        return files[0][0]
    lengths: defaultdict[int, float] = defaultdict(float)
    left_out: defaultdict[int, float] = defaultdict(float)
    rows = examples = 0
    tokens = learnt = 0.0
    for shape, weight in files:
        part = drawn(weight, shape.examples)
        share = part / shape.examples if shape.examples else 0.0
        rows += distinct(weight, shape.rows)
        examples += part
        tokens += share * shape.tokens
        learnt += share * shape.learnt_tokens
        for length, number in shape.lengths.items():
            lengths[length] += share * number
        for length, number in shape.left_out.items():
            left_out[length] += share * number
    counted = None
    if any(shape.counted for shape, _ in files):
        counted = sum(shape.counted or shape.rows for shape, _ in files)
    return DataShape(rows, examples, round(tokens), round(learnt), lengths, counted, left_out)
