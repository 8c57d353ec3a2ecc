"""Percentiles of times under a load, with intervals.

Requests are drawn, not times: those of one request depend on each other, so that a bootstrap sample has whole requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tunewright.metrics.intervals import Floats, Table, interval, ratio

SAMPLES = 1000
"""Bootstrap samples."""


class Percentile(NamedTuple):
    value: float
    low: float
    high: float


def percentile(
    requests: Sequence[Sequence[float]], share: float, seed: int, samples: int = SAMPLES
) -> Percentile:
    """The smallest time that this share of all times does not exceed, with the 95 % percentile bootstrap over requests;
    `requests` has the times of each. NaN where there are none."""
    times = np.concatenate([np.asarray(one, dtype=np.float64) for one in requests] or [np.zeros(0)])
    if not len(times):
        return Percentile(math.nan, math.nan, math.nan)
    of = np.repeat(np.arange(len(requests)), [len(one) for one in requests])
    order = np.argsort(times, kind="stable")
    times, of = times[order], of[order]
    random = np.random.default_rng(seed)
    found = [_quantile(times, share, np.ones(len(times)))]
    for _ in range(samples):
        drawn = np.bincount(random.integers(0, len(requests), len(requests)), minlength=len(requests))
        weights = drawn[of].astype(np.float64)
        if weights.any():
            found.append(_quantile(times, share, weights))
    low, high = np.quantile(found[1:] or found, [0.025, 0.975])
    return Percentile(found[0], float(low), float(high))


def _quantile(times: Floats, share: float, weights: Floats) -> float:
    """Of sorted times, each of which counts so often."""
    sums: npt.NDArray[np.float64] = np.cumsum(weights)
    return float(times[min(int(np.searchsorted(sums, share * sums[-1] - 1e-9)), len(times) - 1)])


def rate(tokens: Sequence[int], seconds: Sequence[float], wall: float, seed: int) -> Percentile:
    """Tokens in a second of all requests together, which took `wall` seconds, with the bootstrap interval of tokens
    over seconds of a request."""
    if not tokens or wall <= 0:
        return Percentile(math.nan, math.nan, math.nan)
    table = Table(np.array([tokens, seconds], dtype=np.float64).T, ratio, scale=None)
    value, each, found = sum(tokens) / wall, table.value(), interval(table, seed, SAMPLES)
    return Percentile(value, value * found.low / each, value * found.high / each)
