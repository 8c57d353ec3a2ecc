"""What a model has forgotten of a suite, against the suite's limit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tunewright.evaluator.folder import EvaluationSpec
from tunewright.evaluator.suites import Suite
from tunewright.metrics.intervals import Table, interval, relative_drop
from tunewright.metrics.verdicts import (
    FEWEST_ROWS,
    Reason,
    Verdict,
    compared_with_limit,
    rows_needed,
)


def forgotten(suite: Suite, spec: EvaluationSpec, tables: Sequence[Table]) -> list[Reason]:
    """A reason for each model that the evaluated one is compared with; `tables` are of the suite's first metric."""
    return [
        _against(suite, spec, name.name, tables[0], other)
        for name, other in zip(spec.models[1:], tables[1:], strict=True)
    ]


def _against(suite: Suite, spec: EvaluationSpec, name: str, ours: Table, theirs: Table) -> Reason:
    value, low, high = relative_drop(ours, theirs, spec.seed)
    rows = ours.rows
    verdict = compared_with_limit(value, low, high, suite.limit, is_least=False)
    known = interval(theirs, spec.seed)
    if rows < FEWEST_ROWS:
        verdict = Verdict.NOT_ENOUGH_DATA
        message = f"fewer than {FEWEST_ROWS} questions of {suite.name} are not judged"
    elif math.isnan(value) or (known.low <= suite.chance and suite.chance):
        verdict = Verdict.NOT_ENOUGH_DATA
        message = (
            f"{name} answers {theirs.value():.1%} of {suite.name} right ({known.low:.1%} to {known.high:.1%}), which "
            "is not seen to be more than by chance: nothing can be forgotten"
        )
    else:
        message = (
            f"{suite.name} is {value:.1%} ({low:.1%} to {high:.1%}) below that of {name} on {rows} questions; the "
            f"limit is {suite.limit:.0%}"
        )
        if verdict is Verdict.NOT_ENOUGH_DATA and (
            needed := rows_needed(rows, value, low, high, suite.limit)
        ):
            message += (
                f", which is inside the interval; about {needed} questions would tell, if the figure stays"
            )
    return Reason(
        name="forgetting",
        verdict=verdict,
        message=message,
        metric=suite.metrics(1)[0],
        against=name,
        value=_known(value),
        low=_known(low),
        high=_known(high),
        limit=suite.limit,
    )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
