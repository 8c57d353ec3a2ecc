"""Percentiles under a load: what they are, and how sure."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tunewright.metrics.latency import percentile, rate


@pytest.mark.parametrize("share", [0.5, 0.99])
@pytest.mark.parametrize("count", [1, 7, 100, 1000])
def test_a_percentile_is_the_smallest_time_that_so_many_do_not_exceed(share: float, count: int) -> None:
    times = np.random.default_rng(count).exponential(1.0, count)

    found = percentile([[time] for time in times], share, seed=0)

    assert found.value == np.quantile(times, share, method="inverted_cdf")
    assert found.low <= found.value <= found.high


def test_the_times_of_a_request_are_drawn_together() -> None:
    random = np.random.default_rng(0)
    requests = [[base] * 50 for base in random.exponential(1.0, 40)]

    together = percentile(requests, 0.5, seed=0)
    alone = percentile([[time] for one in requests for time in one], 0.5, seed=0)

    assert together.value == alone.value
    assert together.high - together.low > 3 * (alone.high - alone.low)


def test_intervals_of_medians_and_rates_cover_them() -> None:
    random = np.random.default_rng(1)
    medians = rates = 0
    trials = 300
    for trial in range(trials):
        seconds = random.gamma(4.0, 0.25, 100)
        found = percentile([[one] for one in seconds], 0.5, seed=trial, samples=300)
        medians += found.low <= 0.918 <= found.high  # that of the distribution
        wall = float(seconds.sum() / 8)
        speed = rate([100] * 100, list(seconds), wall, seed=trial)
        rates += speed.low <= 8 * 100 / 1.0 <= speed.high
    assert 0.90 <= medians / trials <= 0.985
    assert 0.90 <= rates / trials <= 0.985


def test_a_rate_is_of_all_requests_together() -> None:
    found = rate([10, 30], [1.0, 2.0], 2.0, seed=0)

    assert found.value == 20.0
    assert found.low <= 20.0 <= found.high


def test_without_times_there_is_no_figure() -> None:
    assert all(math.isnan(one) for one in percentile([[], []], 0.5, seed=0))
    assert all(math.isnan(one) for one in rate([], [], 1.0, seed=0))
