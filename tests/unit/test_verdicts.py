"""Verdicts of evaluations: limits against intervals, and that they are right as often as they claim."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tunewright.evaluator.report import Comparison, EvaluationReport, Figure, ModelFigures
from tunewright.evaluator.verdict import judge
from tunewright.metrics.intervals import difference, interval, means
from tunewright.metrics.verdicts import Limit, Verdict


def report(
    metric: str = "accuracy",
    figure: tuple[float | None, float | None, float | None] = (0.9, 0.85, 0.94),
    drop: tuple[float | None, float | None, float | None] | None = None,
    rows: int = 120,
) -> EvaluationReport:
    value, low, high = figure
    comparisons = []
    if drop is not None:
        comparisons = [
            Comparison(
                against="old", metric=metric, difference=drop[0], low=drop[1], high=drop[2], p_value=0.5,
                test="permutation", better_rows=1, worse_rows=1, conclusion="no_difference_seen",
            )
        ]  # fmt: skip
    return EvaluationReport(
        rows=rows, rows_in_file=rows, skipped=0, metrics=[metric], why="", max_tokens=8, seed=0, changed=[],
        models=[
            ModelFigures(
                model="new", unanswered=0, first_error=None, cut=0, confusion=None, fields=None,
                figures=[Figure(metric=metric, value=value, low=low, high=high, interval="wilson")],
            )
        ],
        comparisons=comparisons,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("of", "limit", "verdict", "words"),
    [
        (report(), {"min": 0.85}, "pass", "0.9 (0.85 to 0.94) on 120 rows; min is 0.85"),
        (report(), {"min": 0.86}, "not_enough_data", "inside the interval"),
        (report(), {"min": 0.93}, "not_enough_data", "about 214 rows would"),
        (report(), {"min": 0.95}, "fail", "min is 0.95"),
        (report(rows=29), {"min": 0.5}, "not_enough_data", "fewer than 30 rows"),
        (report(figure=(None, None, None)), {"min": 0.5}, "not_enough_data", "has no figure"),
        (report("perplexity", (8.0, 7.0, 9.0)), {"max": 9.0}, "pass", "max is 9"),
        (report("perplexity", (8.0, 7.0, 9.0)), {"max": 6.9}, "fail", "max is 6.9"),
        (report(drop=(0.01, -0.02, 0.04)), {"max_drop": 0.02}, "pass", "better than that of old by 0.01 (-0.02 to"),
        (report(drop=(-0.01, -0.04, 0.02)), {"max_drop": 0.02}, "not_enough_data", "0.01 (-0.02 to 0.04)"),
        (report(drop=(-0.1, -0.15, -0.05)), {"max_drop": 0.02}, "fail", "0.1 (0.05 to 0.15)"),
        (report("perplexity", (8.0, 7.0, 9.0), (1.0, 0.5, 1.5)), {"max_drop": 0.4}, "fail", "by 1 (0.5 to 1.5)"),
        (report("perplexity", (8.0, 7.0, 9.0), (1.0, 0.5, 1.5)), {"max_drop": 1.5}, "pass", "max_drop is 1.5"),
        (report(drop=(None, None, None)), {"max_drop": 0.4}, "not_enough_data", "cannot be compared"),
    ],
)  # fmt: skip
def test_the_interval_decides(of: EvaluationReport, limit: dict[str, Any], verdict: str, words: str) -> None:
    found = judge(of, [Limit(metric=of.metrics[0], **limit)])
    assert found.verdict == verdict
    assert words in found.reasons[0].message
    assert words in found.told()


def test_answers_that_never_differ_are_not_certain_to_be_as_good() -> None:
    """The paired bootstrap of rows that are all alike has no width, which would prove anything on 30 rows."""
    same = means(np.full(40, 0.7))
    found = difference(same, same, 0)
    assert found.value == 0.0
    assert found.low == pytest.approx(-0.0876, abs=1e-3)
    assert found.high == pytest.approx(0.0876, abs=1e-3)
    of = report("rougeL", (0.7, 0.7, 0.7), (found.value, found.low, found.high), rows=40)
    assert judge(of, [Limit(metric="rougeL", max_drop=0.01)]).verdict is Verdict.NOT_ENOUGH_DATA
    assert judge(of, [Limit(metric="rougeL", max_drop=0.1)]).verdict is Verdict.PASS


def test_one_missed_limit_fails_and_one_open_limit_leaves_it_open() -> None:
    of = report(drop=(0.0, -0.03, 0.03))

    def verdict(**limits: float) -> Verdict:
        return judge(of, [Limit(metric="accuracy", **limits)]).verdict

    assert verdict(min=0.8, max_drop=0.05) is Verdict.PASS
    assert verdict(min=0.8, max_drop=0.01) is Verdict.NOT_ENOUGH_DATA
    assert verdict(min=0.95, max_drop=0.01) is Verdict.FAIL
    names = [
        (one.name, one.verdict)
        for one in judge(of, [Limit(metric="accuracy", min=0.95, max_drop=0.01)]).reasons
    ]
    assert names == [("min", "fail"), ("max_drop", "not_enough_data")]
    missing = judge(of, [Limit(metric="accuracy", max_drop=0.05)], against=["other"])
    assert (missing.verdict, missing.reasons[0].message) == (
        "not_enough_data",
        "accuracy was not compared with that of other",
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"metric": "accuracy"}, "give `min`, `max` or `max_drop`"),
        ({"metric": "accuracy", "max": 0.5}, "more of accuracy is better"),
        ({"metric": "perplexity", "min": 5}, "less of perplexity is better"),
        ({"metric": "accuracy", "min": 80}, "accuracy is at most 1"),
        ({"metric": "accuracy", "max_drop": -0.1}, "greater than or equal to 0"),
        ({"metric": "accuracy", "min": float("nan")}, "finite"),
    ],
)
def test_limits_that_make_no_sense_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Limit(**fields)


def test_a_model_at_the_limit_passes_in_no_more_than_the_stated_share_of_evaluations() -> None:
    """At the limit itself a wrong verdict is likeliest: 2.5 % pass by chance and 2.5 % fail, within the simulation's
    own spread. One that is clearly better passes nearly always."""
    random = np.random.default_rng(4)
    trials, rows = 400, 120

    def verdicts(share: float) -> list[Verdict]:
        found = []
        for _ in range(trials):
            right = random.random(rows) < share
            of = interval(means(right, is_share=True), 0)
            figure = (float(right.mean()), of.low, of.high)
            found.append(judge(report(figure=figure, rows=rows), [Limit(metric="accuracy", min=0.7)]).verdict)
        return found

    at_limit = verdicts(0.7)
    assert at_limit.count(Verdict.PASS) <= 0.06 * trials
    assert at_limit.count(Verdict.FAIL) <= 0.06 * trials
    assert verdicts(0.85).count(Verdict.PASS) >= 0.9 * trials
    assert verdicts(0.5).count(Verdict.FAIL) >= 0.95 * trials


def test_a_drop_of_the_allowed_size_passes_in_no_more_than_the_stated_share() -> None:
    random = np.random.default_rng(5)
    trials, rows, drop = 300, 200, 0.1
    passed = 0
    for _ in range(trials):
        theirs = random.random(rows) < 0.8
        ours = theirs & (random.random(rows) >= drop / 0.8)
        found = difference(means(ours, is_share=True), means(theirs, is_share=True), 0)
        of = report(drop=(found.value, found.low, found.high), rows=rows)
        passed += judge(of, [Limit(metric="accuracy", max_drop=drop)]).verdict is Verdict.PASS
    assert passed <= 0.06 * trials
