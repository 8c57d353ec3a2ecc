"""Verdicts: whether figures are within stated limits, as far as their 95 % intervals tell.

A limit is met where the whole interval is on its right side, and missed where the whole interval is on its wrong side.
Else the rows do not tell, which is an answer of its own: a figure above the limit may be there by chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tunewright.metrics.names import KINDS, MetricName

FEWEST_ROWS = 30
"""With fewer, percentiles of a bootstrap are too narrow to be called 95 %: nothing is judged."""
_MOST_ROWS_TOLD = 1_000_000

ReasonName = Literal["min", "max", "max_drop", "rows", "evaluation", "forgetting"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Verdict(StrEnum):
    """What the rows say about limits."""

    PASS = "pass"
    """All limits are met."""
    FAIL = "fail"
    """One is missed."""
    NOT_ENOUGH_DATA = "not_enough_data"
    """None is seen to be missed, and not all are seen to be met: more rows would tell."""


class Limit(BaseModel):
    """The limits of one metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: MetricName
    min: float | None = Field(
        None,
        strict=True,
        allow_inf_nan=False,
        description="The smallest figure, of a metric of which more is better.",
    )
    max: float | None = Field(
        None,
        strict=True,
        allow_inf_nan=False,
        description="The largest figure, of perplexity, of which less is better.",
    )
    max_drop: float | None = Field(
        None,
        ge=0,
        strict=True,
        allow_inf_nan=False,
        description="By how much, in the metric's own units, it may be worse than each model that it is compared with. "
        "With 0 it must be seen to be no worse, which nearly takes a better one.",
    )

    @model_validator(mode="after")
    def _check_direction(self) -> Self:
        if self.min is None and self.max is None and self.max_drop is None:
            raise ValueError("give `min`, `max` or `max_drop`")
        kind = KINDS[self.metric]
        if self.min is not None and not kind.higher_is_better:
            raise ValueError(f"less of {self.metric} is better: give `max`")
        if self.max is not None and kind.higher_is_better:
            raise ValueError(f"more of {self.metric} is better: give `min`")
        largest = kind.scale
        if largest is not None and self.min is not None and self.min > largest:
            raise ValueError(f"{self.metric} is at most {largest:g}")
        return self


class Reason(_Part):
    """What was found about one limit."""

    name: ReasonName = Field(
        description="The limit: min, max or max_drop. rows: too few of them to judge. evaluation: what a gate needs "
        "was not measured. forgetting: that of an alias's no_forgetting."
    )
    verdict: Verdict
    message: str
    metric: str | None = None
    against: str | None = Field(None, description="For max_drop, the model that it is compared with.")
    value: float | None = Field(None, description="The figure; for max_drop, by how much it is worse.")
    low: float | None = Field(None, description="The lower end of its 95 % interval.")
    high: float | None = None
    limit: float | None = None


class Judgement(_Part):
    """A verdict with its reasons."""

    verdict: Verdict
    reasons: list[Reason] = Field(description="One for each limit.")

    def told(self) -> str:
        """In a line: the reasons that decided."""
        decided = [one.message for one in self.reasons if one.verdict is self.verdict]
        return f"{words(self.verdict)}: {'; '.join(decided)}"


class TargetVerdict(Judgement):
    """What is known of a model that is to become the target of an alias."""

    model: str
    evaluation: str | None = Field(description="The evaluation that decided; null where there is none.")


class Gate(_Part):
    """What an alias's requirement has found of the targets that are new in a version."""

    forced: bool = Field(description="One has not passed, and `force` was given.")
    targets: list[TargetVerdict]

    def not_passed(self) -> str:
        """The targets that have not passed, with the reasons; empty where all have."""
        return "; ".join(
            f"{one.model}: {one.told()}{f' ({one.evaluation})' if one.evaluation else ''}"
            for one in self.targets
            if one.verdict is not Verdict.PASS
        )


def words(verdict: Verdict) -> str:
    return {
        Verdict.PASS: "pass",
        Verdict.FAIL: "fail",
        Verdict.NOT_ENOUGH_DATA: "not enough data to tell",
    }[verdict]


def overall(reasons: Sequence[Reason]) -> Judgement:
    """One limit that is missed is enough to fail, and one of which the rows do not tell to leave it open."""
    found = {one.verdict for one in reasons}
    for verdict in (Verdict.FAIL, Verdict.NOT_ENOUGH_DATA):
        if verdict in found:
            return Judgement(verdict=verdict, reasons=list(reasons))
    return Judgement(verdict=Verdict.PASS, reasons=list(reasons))


def compared_with_limit(
    value: float | None, low: float | None, high: float | None, limit: float, *, is_least: bool
) -> Verdict:
    """`is_least`: the limit is the smallest value that is good, else the largest one."""
    if value is None or low is None or high is None:
        return Verdict.NOT_ENOUGH_DATA
    if not is_least:
        low, high, limit = -high, -low, -limit
    if low >= limit:
        return Verdict.PASS
    return Verdict.FAIL if high < limit else Verdict.NOT_ENOUGH_DATA


def rows_needed(rows: int, value: float, low: float, high: float, limit: float) -> int | None:
    """About how many rows would tell, if the figure stayed: an interval shrinks with the root of their number. None
    where no number would that anybody has."""
    distance = abs(value - limit)
    half = (value - low) if value >= limit else (high - value)
    if not distance or not half:
        return None
    needed = math.ceil(rows * (half / distance) ** 2)
    return needed if needed <= _MOST_ROWS_TOLD else None
