"""Which of a job's checkpoints becomes its model, by what evaluations have found. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tunewright.kinds.fine_tuning.evaluated import OF_DATA, EvaluateRequest, PointEvaluation
from tunewright.metrics.names import KINDS, MetricName
from tunewright.metrics.verdicts import Verdict, words


@dataclass(frozen=True)
class Selected:
    """The checkpoint that becomes the model, or the last state of the training."""

    model: str
    step: int | None
    verdict: Verdict | None
    """Whether it keeps the limits; None where there are none."""
    why: str


@dataclass(frozen=True)
class _Candidate:
    model: str
    step: int | None
    verdict: Verdict | None
    value: float | None
    """Of the metric that decides; None where it was not measured."""
    reasons: tuple[str, ...]
    """What was found about the limits."""


def selected(
    request: EvaluateRequest,
    points: Sequence[PointEvaluation],
    last: str,
    alike: Collection[str] = (),
) -> Selected:
    """What becomes the model of the job whose last state is the model `last`; checkpoints `alike` have its weights.

    The best one is the one with the best value of the metric among those that keep the limits; where none is seen to
    keep them, among those of which the rows do not tell; the earliest of equal ones. Where all miss a limit, and where
    none was measured, it is the last.
    """
    metric = _metric(request, points)
    found = [one for one in _candidates(request, points, metric) if one.model not in alike]
    of_last = next((one for one in found if one.model == last), None)
    verdict = of_last.verdict if of_last is not None else None
    reasons = "; ".join(of_last.reasons) if of_last is not None else ""
    if request.select == "last":
        told = f"{words(verdict)}{f': {reasons}' if reasons else ''}" if verdict is not None else "no limit"
        return Selected(last, None, verdict, f"It is the last state of the training ({told})")
    measured = [one for one in found if one.value is not None]
    if metric is None or not measured:
        return Selected(last, None, verdict, "No checkpoint was measured, so that it is the last one")
    for verdicts, what in (
        ((Verdict.PASS, None), "that keep the limits" if verdict is not None else "that were measured"),
        ((Verdict.NOT_ENOUGH_DATA,), "of which the rows do not tell whether they keep the limits"),
    ):
        kept = [one for one in measured if one.verdict in verdicts]
        if kept:
            sign = 1 if KINDS[metric].higher_is_better else -1
            best = max(kept, key=lambda one: (sign * (one.value or 0.0), -(one.step or _LAST)))
            return Selected(best.model, best.step, best.verdict, _why(best, kept, what, metric, len(found)))
    return Selected(
        last, None, Verdict.FAIL,
        f"None of {len(found)} checkpoints keeps the limits, so that it is the last one, which misses them: {reasons}",
    )  # fmt: skip


_LAST = 2**62
"""In the place of the step of the last state, which comes after all checkpoints."""


def _metric(request: EvaluateRequest, points: Sequence[PointEvaluation]) -> MetricName | None:
    if request.metric is not None:
        return request.metric
    of_rows = (one for one in points if one.measure == OF_DATA and one.at != "before" and one.figures)
    first = next(of_rows, None)
    return first.figures[0].metric if first is not None else None


def _candidates(
    request: EvaluateRequest, points: Sequence[PointEvaluation], metric: MetricName | None
) -> list[_Candidate]:
    """The models that were evaluated, in the order of their steps, the last one behind them."""
    by_model: dict[str, list[PointEvaluation]] = {}
    for one in points:
        if one.at != "before":
            by_model.setdefault(one.model, []).append(one)
    found = []
    for model, of_model in by_model.items():
        figures = [figure for one in of_model if one.measure == OF_DATA for figure in one.figures]
        value = next((figure.value for figure in figures if figure.metric == metric), None)
        reasons = tuple(reason for one in of_model for reason in one.reasons)
        unmeasured = tuple(f"{one.measure} was not measured: {one.why}" for one in of_model if one.why)
        verdict = _verdict(request, of_model)
        found.append(_Candidate(model, of_model[0].step, verdict, value, (*reasons, *unmeasured)))
    return sorted(found, key=lambda one: one.step or _LAST)


def _verdict(request: EvaluateRequest, of_model: Sequence[PointEvaluation]) -> Verdict | None:
    """What all evaluations of a model say together; one with limits that has failed leaves it open."""
    limited = {one.name for one in request.measures if one.request.suite is not None or one.request.require}
    verdicts = {one.verdict or Verdict.NOT_ENOUGH_DATA for one in of_model if one.measure in limited}
    for verdict in (Verdict.FAIL, Verdict.NOT_ENOUGH_DATA, Verdict.PASS):
        if verdict in verdicts:
            return verdict
    return None


def _why(best: _Candidate, kept: Sequence[_Candidate], what: str, metric: MetricName, number: int) -> str:
    others = ", ".join(
        f"{one.value:.4g} {_place(one)}" for one in kept if one is not best and one.value is not None
    )
    return (
        f"It is the best of the {len(kept)} of {number} {what}: {metric} {best.value:.4g} {_place(best)}"
        f"{f', and {others}' if others else ''}"
    )


def _place(one: _Candidate) -> str:
    return "at the end" if one.step is None else f"at step {one.step}"
