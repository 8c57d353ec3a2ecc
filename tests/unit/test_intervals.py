"""Intervals cover what they should in simulations, and comparisons are those of the textbooks."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from tunewright.metrics.figures import Measured, table
from tunewright.metrics.intervals import Table, difference, interval, mcnemar_exact, means, wilson

BOUND = 0.035
"""How far the share of intervals that cover may be from 0.95: four standard errors of 600 trials."""


def test_wilson_is_the_textbooks() -> None:
    # statsmodels.stats.proportion.proportion_confint(8, 10, method="wilson"), and (0, 20)
    assert wilson(0.8, 10) == (pytest.approx(0.4901624715), pytest.approx(0.9433178485))
    assert wilson(0.0, 20) == (0.0, pytest.approx(0.1611251581))
    assert wilson(1.0, 20)[1] == 1.0


def test_mcnemar_is_exact() -> None:
    # scipy.stats.binomtest(1, 8).pvalue, and (3, 13)
    assert mcnemar_exact(7, 1) == mcnemar_exact(1, 7) == pytest.approx(0.0703125)
    assert mcnemar_exact(3, 10) == pytest.approx(0.09228515625)
    assert mcnemar_exact(4, 4) == mcnemar_exact(0, 0) == 1.0


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_intervals_of_shares_cover(share: float) -> None:
    random = np.random.default_rng(1)
    rows, trials = 80, 600
    found = [interval(means(random.random(rows) < share, is_share=True), 0) for _ in range(trials)]
    covered = sum(one.low <= share <= one.high for one in found) / trials
    assert covered >= 0.95 - BOUND
    assert covered <= 0.95 + BOUND


@pytest.mark.parametrize("metric", ["token_f1", "chrf"])
def test_bootstrap_intervals_cover(metric: str) -> None:
    """Of answers that are right in a random number of words."""
    random = np.random.default_rng(2)
    words = ["alpha", "bravo", "candle", "dagger", "ember", "forest"]
    expected = " ".join(words)
    kinds = [" ".join([*words[:right], *(["wrong"] * (6 - right))]) for right in range(7)]
    weights = np.array([1, 1, 2, 3, 2, 2, 1]) / 12
    every = table(
        metric,
        Measured([expected] * 12, [kinds[k] for k, n in enumerate(weights * 12) for _ in range(round(n))]),
    )  # type: ignore[arg-type]
    truth = every.value()
    of_kind = {k: every.numbers[int(sum(weights[:k] * 12) + 0.5)] for k in range(7)}
    trials, covered = 600, 0
    for trial in range(trials):
        numbers = np.array([of_kind[k] for k in random.choice(7, 80, p=weights)])
        found = interval(Table(numbers, every.figure, every.scale), trial, samples=400)
        covered += found.low <= truth <= found.high
    assert covered / trials == pytest.approx(0.95, abs=BOUND)


def test_intervals_of_differences_cover_and_p_values_are_uniform() -> None:
    """Two models whose rows are right together more often than by chance; one a little better, or none."""
    random = np.random.default_rng(3)
    rows, trials = 80, 600
    covered = rejected = 0
    for trial in range(trials):
        easy = random.random(rows)
        first = means(easy + random.normal(0, 0.2, rows) < 0.6, is_share=True)
        second = means(easy + random.normal(0, 0.2, rows) < 0.6, is_share=True)
        found = difference(first, second, trial)
        covered += found.low <= 0 <= found.high
        rejected += found.p_value < 0.05
    assert covered / trials == pytest.approx(0.95, abs=BOUND)
    assert rejected / trials <= 0.05 + BOUND, "the exact test rejects less often, never more"


def test_bootstrap_intervals_and_permutations_of_differences_hold() -> None:
    random = np.random.default_rng(4)
    rows, trials = 60, 300
    covered = rejected = found_out = 0
    for trial in range(trials):
        easy = random.random(rows)
        first, second, better = (
            means(np.clip(easy + random.normal(by, 0.2, rows), 0, 1)) for by in (0, 0, 0.15)
        )
        same = difference(first, second, trial, samples=400)
        covered += same.low <= 0 <= same.high
        rejected += same.p_value < 0.05
        found_out += difference(better, second, trial, samples=400).p_value < 0.05
    assert covered / trials == pytest.approx(0.95, abs=1.4 * BOUND)
    assert rejected / trials == pytest.approx(0.05, abs=1.4 * BOUND)
    assert found_out / trials > 0.8


def test_the_permutation_test_is_that_of_all_exchanges() -> None:
    random = np.random.default_rng(5)
    first, second = random.random(9), random.random(9) + 0.2
    gaps = first - second
    every = [abs(np.mean(gaps * signs)) for signs in product((-1, 1), repeat=9)]
    exact = np.mean([one >= abs(gaps.mean()) - 1e-12 for one in every])
    assert difference(means(first), means(second), 0, samples=20_000).p_value == pytest.approx(
        exact, abs=0.01
    )


def test_the_same_seed_gives_the_same_interval_and_rows_that_are_all_alike_are_not_certain() -> None:
    values = means(np.random.default_rng(6).random(50))
    assert interval(values, 7) == interval(values, 7) != interval(values, 8)
    alike = interval(means([1.0] * 20), 0)
    assert (alike.low, alike.high, alike.method) == (pytest.approx(0.8388748419), 1.0, "wilson")
    assert math.isnan(interval(means([]), 0).low)
    assert math.isnan(difference(means([]), means([]), 0).p_value)
