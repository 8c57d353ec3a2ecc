"""The verdict of an evaluation: its report against limits."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.evaluator.report import Comparison, EvaluationReport
from tunewright.metrics.names import KINDS
from tunewright.metrics.verdicts import (
    FEWEST_ROWS,
    Judgement,
    Limit,
    Reason,
    ReasonName,
    Verdict,
    compared_with_limit,
    overall,
    rows_needed,
    words,
)


def judge(
    report: EvaluationReport, limits: Sequence[Limit], against: Sequence[str] | None = None
) -> Judgement:
    """The verdict on the evaluated model. `max_drop` is of the models `against`, else of all that it was compared
    with."""
    return overall([reason for limit in limits for reason in _of_limit(report, limit, against)])


def _of_limit(report: EvaluationReport, limit: Limit, against: Sequence[str] | None) -> list[Reason]:
    found = []
    figure = report.figure(limit.metric)
    measured = (figure.value, figure.low, figure.high) if figure else (None, None, None)
    if limit.min is not None:
        found.append(_reason("min", report.rows, limit.metric, *measured, limit.min))
    if limit.max is not None:
        found.append(_reason("max", report.rows, limit.metric, *measured, limit.max))
    if limit.max_drop is not None:
        compared = {one.against: one for one in report.comparisons if one.metric == limit.metric}
        names = list(compared) if against is None else against
        found += [_drop(report.rows, limit, name, compared.get(name)) for name in names]
    return found


def _drop(rows: int, limit: Limit, name: str, compared: Comparison | None) -> Reason:
    assert limit.max_drop is not None, "the caller has looked"
    if compared is None or compared.difference is None or compared.low is None or compared.high is None:
        why = "was not compared" if compared is None else "cannot be compared"
        return Reason(
            name="max_drop",
            verdict=Verdict.NOT_ENOUGH_DATA,
            message=f"{limit.metric} {why} with that of {name}",
            metric=limit.metric,
            against=name,
            limit=limit.max_drop,
        )
    worse = (compared.difference, compared.low, compared.high)
    if KINDS[limit.metric].higher_is_better:
        worse = (-compared.difference, -compared.high, -compared.low)
    return _reason("max_drop", rows, limit.metric, *worse, limit.max_drop, against=name)


def _reason(
    name: ReasonName,
    rows: int,
    metric: str,
    value: float | None,
    low: float | None,
    high: float | None,
    limit: float,
    *,
    against: str | None = None,
) -> Reason:
    verdict = compared_with_limit(value, low, high, limit, is_least=name == "min")
    if value is None or low is None or high is None:
        message = f"{metric} has no figure"
    elif against is None:
        message = f"{metric} is {value:.4g} ({low:.4g} to {high:.4g}) on {rows} rows; {name} is {limit:g}"
    else:
        shown, word = ((value, low, high), "worse") if value >= 0 else ((-value, -high, -low), "better")
        by = f"{shown[0]:.4g} ({shown[1]:.4g} to {shown[2]:.4g})"
        message = f"{metric} is {word} than that of {against} by {by} on {rows} rows; {name} is {limit:g}"
    if rows < FEWEST_ROWS:
        name, verdict = "rows", Verdict.NOT_ENOUGH_DATA
        message += f"; fewer than {FEWEST_ROWS} rows are not judged"
    elif verdict is Verdict.NOT_ENOUGH_DATA and value is not None and low is not None and high is not None:
        needed = rows_needed(rows, value, low, high, limit)
        message += f", which is inside the interval: {words(verdict)}"
        message += f"; about {needed} rows would, if the figure stays" if needed else ""
    return Reason(
        name=name, verdict=verdict, message=message, metric=metric, against=against,
        value=value, low=low, high=high, limit=limit,
    )  # fmt: skip
