"""Options of `tunewright jobs create` for the evaluations of a job, and what `jobs show` tells of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, get_args

import click

from tunewright.cli.limits import limits_of, numbers, verdict_words
from tunewright.cli.options import KeyValue
from tunewright.cli.output import Output
from tunewright.metrics.names import METRICS, SuiteName
from tunewright_client import JobEvaluation, JobEvaluationPoint, Metrics

_POINTS = ("before", "checkpoints", "end")
_SELECT = ("last", "best")
_EVALUATED, _GAIN, _FORGOTTEN = "eval_", "_gain", "_forgotten"
"""How names of a checkpoint's metrics begin and end that its evaluations have found."""


def evaluate_options(file: click.ParamType[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds `--evaluate` and what belongs to it; the command gets `evaluate`, the field of the request, or None."""
    limits = [
        click.option(
            f"--evaluate-{name}", f"evaluate_{name.replace('-', '_')}", type=KeyValue(), multiple=True,
            metavar="METRIC=NUMBER", callback=numbers, help=about,
        )
        for name, about in (
            ("min", "The smallest figure of a metric, such as accuracy=0.8; may be repeated."),
            ("max", "The largest figure of a metric of which less is better: perplexity."),
            ("max-drop", "By how much a metric may be worse than that of the base."),
        )
    ]  # fmt: skip
    options = [
        click.option(
            "--evaluate", "evaluate_file", type=file,
            help="Rows on which the model is measured against the base before the job ends: a file here, or the id of "
            "an uploaded one.",
        ),
        click.option(
            "--evaluate-suite", "evaluate_suites", multiple=True, type=click.Choice(get_args(SuiteName)),
            help="A suite that the operator provides, by which forgetting is measured; may be repeated.",
        ),
        click.option(
            "--evaluate-metric", "evaluate_metrics", multiple=True, type=click.Choice(METRICS),
            help="Of --evaluate; may be repeated. Default: those that suit the expected answers.",
        ),
        *limits,
        click.option(
            "--evaluate-at", multiple=True, type=click.Choice(_POINTS),
            help="What is measured: before (the base), checkpoints, end; may be repeated. Default: before and end.",
        ),
        click.option(
            "--evaluate-rows", type=click.IntRange(1), help="How many rows, or questions of each suite, are drawn."
        ),
        click.option(
            "--select", type=click.Choice(_SELECT),
            help="What becomes the model: the last state, or the best checkpoint that keeps all limits.  "
            "[default: last]",
        ),
    ]  # fmt: skip

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_evaluate(
            *arguments: Any,
            evaluate_file: Any,
            evaluate_suites: tuple[str, ...],
            evaluate_metrics: tuple[str, ...],
            evaluate_min: dict[str, float],
            evaluate_max: dict[str, float],
            evaluate_max_drop: dict[str, float],
            evaluate_at: tuple[str, ...],
            evaluate_rows: int | None,
            select: str | None,
            **others: Any,
        ) -> Any:
            asked = {
                "data": evaluate_file,
                "suites": [{"name": name} for name in evaluate_suites],
                "metrics": list(evaluate_metrics),
                "require": limits_of(evaluate_min, evaluate_max, evaluate_max_drop),
                "at": list(evaluate_at),
                "rows": evaluate_rows,
                "select": select,
            }
            evaluate = {name: value for name, value in asked.items() if value}
            if evaluate and evaluate_file is None and not evaluate_suites:
                raise click.UsageError("Give --evaluate, --evaluate-suite, or both: what is measured.")
            return command(*arguments, evaluate=evaluate or None, **others)

        found: Callable[..., Any] = with_evaluate
        for option in reversed(options):
            found = option(found)
        return found

    return decorate


def show_evaluation(out: Output, evaluation: JobEvaluation) -> None:
    """Print what the evaluations of a job have found."""
    rows = [row for point in evaluation.points for row in _rows(point)]
    if rows:
        out.line("")
        out.table(["at", "step", "on", "metric", "figure", "against the base", "limits"], rows)
    if evaluation.why:
        verdict = f" ({verdict_words(evaluation.verdict)})" if evaluation.verdict else ""
        out.line(f"{evaluation.model}{verdict}: {evaluation.why}")


def evaluated_text(metrics: Metrics) -> str:
    """What the evaluations of a job have found of a checkpoint, from its metrics: empty where it has none."""
    found = {
        name: value for name, value in (metrics.model_extra or {}).items() if name.startswith(_EVALUATED)
    }
    texts = []
    for name, value in found.items():
        if name.endswith((_GAIN, _FORGOTTEN)):
            continue
        gain, lost = found.get(f"{name}{_GAIN}"), found.get(f"{name}{_FORGOTTEN}")
        text = f"{name.removeprefix(_EVALUATED)} {value:.3f}"
        text += f" ({gain:+.3f})" if gain is not None else ""
        texts.append(text + (f" (forgotten {lost:.1%})" if lost is not None else ""))
    return ", ".join(texts)


def _rows(point: JobEvaluationPoint) -> list[tuple[object, ...]]:
    place = (point.at, point.step, point.measure)
    verdict = verdict_words(point.verdict) if point.verdict else ""
    if point.status != "succeeded":
        return [(*place, "", point.status, point.why or "", "")]
    found: list[tuple[object, ...]] = [
        (
            *place,
            figure.metric,
            _interval(figure.value, figure.low, figure.high),
            _interval(figure.gain, figure.gain_low, figure.gain_high, "+"),
            verdict,
        )
        for figure in point.figures
    ]
    if point.forgotten is not None and point.forgotten.value is not None:
        lost = point.forgotten
        found.append((*place, "forgotten", _interval(lost.value, lost.low, lost.high), "", verdict))
    return found


def _interval(value: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    if value is None or low is None or high is None:
        return ""
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"
