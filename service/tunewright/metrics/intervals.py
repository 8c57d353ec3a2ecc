"""95 % intervals of figures, and paired comparisons of two models on the same rows.

A figure is a function of sums over rows: `Table.numbers` has the summands of each row, and `Table.figure` makes figures
of sums. So a bootstrap sample, and a set of rows with the answers of two models exchanged, is a product of matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

SAMPLES = 10_000
"""Bootstrap samples, and permutations."""
_Z = 1.959963984540054
_AT_ONCE = 4_000_000
"""Numbers of a block of samples: 32 MB."""


@dataclass(frozen=True)
class Table:
    """What a metric is computed from."""

    numbers: Floats
    """Shape (rows, k)."""
    figure: Callable[[Floats], Floats]
    """Figures, shape (sets), of sums of the rows' numbers, shape (sets, k). NaN where a set has none."""
    scale: float | None = 1.0
    """The largest possible figure."""
    is_share: bool = False
    """The figure is the share of the rows whose first number is 1; the second is 1 for each row."""

    @property
    def rows(self) -> int:
        return len(self.numbers)

    def value(self) -> float:
        return float(self.figure(self.numbers.sum(0, keepdims=True))[0])


@dataclass(frozen=True)
class Interval:
    """A 95 % interval; both ends are NaN where there are no rows."""

    low: float
    high: float
    method: Literal["wilson", "bootstrap"]


@dataclass(frozen=True)
class Difference:
    """The first model's figure minus the second's, on the same rows."""

    value: float
    low: float
    high: float
    p_value: float
    test: Literal["mcnemar_exact", "permutation"]
    """Of the hypothesis that both models are equally good."""


def means(values: npt.ArrayLike, *, scale: float | None = 1.0, is_share: bool = False) -> Table:
    """The table of a metric that is the mean of the rows' values."""
    column = np.asarray(values, dtype=np.float64)
    return Table(np.stack([column, np.ones_like(column)], 1), ratio, scale, is_share)


def ratio(sums: Floats) -> Floats:
    """The first sum over the second one."""
    shares: Floats = np.divide(
        sums[:, 0], sums[:, 1], out=np.full(len(sums), math.nan), where=sums[:, 1] != 0
    )
    return shares


def wilson(share: float, rows: int) -> tuple[float, float]:
    """The interval of a share (Wilson 1927)."""
    if not rows:
        return math.nan, math.nan
    center = (share + _Z**2 / (2 * rows)) / (1 + _Z**2 / rows)
    half = _Z / (1 + _Z**2 / rows) * math.sqrt(share * (1 - share) / rows + _Z**2 / (4 * rows**2))
    return (0.0 if share == 0 else center - half), (1.0 if share == 1 else center + half)


def interval(table: Table, seed: int, samples: int = SAMPLES) -> Interval:
    """Wilson's interval of a share. Else the percentile bootstrap over rows (Efron 1979), but where all samples have
    the same figure, which says nothing of the rows that were not drawn, Wilson's interval of that figure: of all values
    between 0 and the scale that have a mean, 0 and the scale vary the most."""
    value = table.value()
    if not table.rows or math.isnan(value):
        return Interval(math.nan, math.nan, "wilson" if table.is_share else "bootstrap")
    if not table.is_share:
        figures = np.concatenate([table.figure(sums) for sums in _bootstrap([table.numbers], seed, samples)])
        low, high = _quantiles(figures)
        if low < high or table.scale is None:
            return Interval(low, high, "bootstrap")
    scale = table.scale or 1.0
    low, high = wilson(min(max(value / scale, 0.0), 1.0), table.rows)
    return Interval(low * scale, high * scale, "wilson")


def difference(first: Table, second: Table, seed: int, samples: int = SAMPLES) -> Difference:
    """Compare two models on the same rows. The interval is the paired bootstrap's, where samples differ (else as wide
    as Wilson's of a share of 0: in so many rows the models were seen to differ in none), and for shares Newcombe's of
    1998 (method 10), which holds for few rows too. The p-value is McNemar's exact one for shares, else that of a
    permutation test: in each row the models' answers are exchanged, or not."""
    value = first.value() - second.value()
    if not first.rows or math.isnan(value):
        return Difference(math.nan, math.nan, math.nan, math.nan, "permutation")
    if first.is_share:
        ours, theirs = first.numbers[:, 0] > 0, second.numbers[:, 0] > 0
        low, high = _newcombe(ours, theirs)
        p_value = mcnemar_exact(int((ours & ~theirs).sum()), int((theirs & ~ours).sum()))
        return Difference(value, low, high, p_value, "mcnemar_exact")
    k = first.numbers.shape[1]
    found = [
        first.figure(sums[:, :k]) - second.figure(sums[:, k:])
        for sums in _bootstrap([first.numbers, second.numbers], seed, samples)
    ]
    low, high = _quantiles(np.concatenate(found))
    if low == high and first.scale is not None:
        # all rows differ alike, most likely not at all, which says nothing certain of other rows: as in `interval`
        spread = first.scale * wilson(0.0, first.rows)[1]
        low, high = max(value - spread, -first.scale), min(value + spread, first.scale)
    return Difference(value, low, high, _permutation(first, second, value, seed, samples), "permutation")


def relative_drop(now: Table, before: Table, seed: int, samples: int = SAMPLES) -> tuple[float, float, float]:
    """By how much of the second figure the first is below it, on the same rows, with its paired bootstrap interval. NaN
    where the second is 0. Samples in which it is 0 count as no drop."""

    def drop(ours: Floats, theirs: Floats) -> Floats:
        found: Floats = np.divide(theirs - ours, theirs, out=np.zeros(len(theirs)), where=theirs > 0)
        return found

    if not now.rows or not before.value() > 0:
        return math.nan, math.nan, math.nan
    k = now.numbers.shape[1]
    found = [
        drop(now.figure(sums[:, :k]), before.figure(sums[:, k:]))
        for sums in _bootstrap([now.numbers, before.numbers], seed, samples)
    ]
    low, high = _quantiles(np.concatenate(found))
    return (before.value() - now.value()) / before.value(), low, high


def mcnemar_exact(better: int, worse: int) -> float:
    """The two-sided p-value of so many rows that only one of two models has right (McNemar 1947, exact)."""
    n = better + worse
    if not n:
        return 1.0
    tail = sum(_binomial(n, i) for i in range(min(better, worse) + 1))
    return min(1.0, 2 * tail)


def _binomial(n: int, i: int) -> float:
    return math.exp(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2))


def _newcombe(ours: npt.NDArray[np.bool_], theirs: npt.NDArray[np.bool_]) -> tuple[float, float]:
    n = len(ours)
    first, second = float(ours.mean()), float(theirs.mean())
    low1, high1 = wilson(first, n)
    low2, high2 = wilson(second, n)
    both = float((ours & theirs).mean() - first * second)
    spread = math.sqrt(first * (1 - first) * second * (1 - second))
    phi = both / spread if spread else 0.0
    below = (first - low1) ** 2 - 2 * phi * (first - low1) * (high2 - second) + (high2 - second) ** 2
    above = (high1 - first) ** 2 - 2 * phi * (high1 - first) * (second - low2) + (second - low2) ** 2
    value = first - second
    return value - math.sqrt(max(below, 0.0)), value + math.sqrt(max(above, 0.0))


def _permutation(first: Table, second: Table, value: float, seed: int, samples: int) -> float:
    random = np.random.default_rng(seed)
    ours, theirs = first.numbers.sum(0), second.numbers.sum(0)
    gap = second.numbers - first.numbers
    as_far = 0
    for size in _blocks(first.rows, samples):
        exchanged = random.integers(0, 2, (size, first.rows), dtype=np.int8).astype(np.float64) @ gap
        found = first.figure(ours + exchanged) - second.figure(theirs - exchanged)
        as_far += int((np.abs(found) >= abs(value) - 1e-12).sum())
    return (1 + as_far) / (1 + samples)


def _bootstrap(tables: list[Floats], seed: int, samples: int) -> Iterator[Floats]:
    """Sums of the tables' rows, side by side, in samples of rows with replacement."""
    random = np.random.default_rng(seed)
    numbers = np.concatenate(tables, 1)
    rows = len(numbers)
    for size in _blocks(rows, samples):
        drawn = random.integers(0, rows, (size, rows))
        offsets = np.arange(size)[:, None] * rows
        times = np.bincount((drawn + offsets).ravel(), minlength=size * rows).reshape(size, rows)
        yield times.astype(np.float64) @ numbers


def _blocks(rows: int, samples: int) -> Iterator[int]:
    most = max(1, _AT_ONCE // max(rows, 1))
    for start in range(0, samples, most):
        yield min(most, samples - start)


def _quantiles(figures: Floats) -> tuple[float, float]:
    """NaN of sets that have no figure are left out."""
    low, high = np.nanquantile(figures, [0.025, 0.975])
    return float(low), float(high)
