"""Chooses the metrics, and makes the report of the answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from tunewright.evaluator.asking import Kept, Task
from tunewright.evaluator.folder import EvaluationSpec
from tunewright.evaluator.forgetting import forgotten
from tunewright.evaluator.grading import Graded
from tunewright.evaluator.judging import Judgements
from tunewright.evaluator.questions import Question
from tunewright.evaluator.report import (
    Changed,
    ChangedRow,
    Comparison,
    Confusion,
    EvaluationReport,
    FieldAccuracy,
    Figure,
    ModelFigures,
)
from tunewright.evaluator.suites import SUITES
from tunewright.evaluator.verdict import judge
from tunewright.jobs.failure import TrainingFailed
from tunewright.metrics.auto import choose
from tunewright.metrics.figures import Measured, by_field, confusion, labels_of, row_values, table
from tunewright.metrics.intervals import Floats, Table, difference, interval, means
from tunewright.metrics.names import KINDS, OF_LABELS, OF_SCORES, MetricName
from tunewright.metrics.structured import NOT_JSON, InvalidSchema, fits, parsed, validator_of
from tunewright.metrics.verdicts import overall

_MOST_LABELS, _MOST_FIELDS = 50, 100
_CHANGED = 10
_SHOWN = 400
"""Characters."""
_SIGNIFICANT = 0.05

RowFigures = dict[str, list[float | None]]


class Plan(NamedTuple):
    """What is measured."""

    metrics: tuple[MetricName, ...]
    why: str
    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class Answered:
    """What one model has answered, for each row."""

    kept: dict[Task, list[Kept]]

    def of_task(self, task: Task) -> list[Kept]:
        return self.kept[task]

    def answers(self) -> list[str | None]:
        kept = next((found for task, found in self.kept.items() if task != "score"), [])
        return [one.answer if one.error is None else None for one in kept]


def plan(spec: EvaluationSpec, expected: Sequence[str]) -> Plan:
    """The metrics, and what has to be asked for them. Raises TrainingFailed where the data does not have what a metric
    needs."""
    if spec.suite is not None:
        suite, samples = SUITES[spec.suite.name], spec.suite.samples
        task: Task = "choice" if suite.chance else "program" if suite.name == "humaneval" else "answer"
        return Plan(suite.metrics(samples), f"the suite {suite.name}", (task,))
    if spec.metrics is None:
        metrics, why = choose(expected, has_schema=spec.json_schema is not None)
        metrics = tuple(dict.fromkeys([*metrics, *(limit.metric for limit in spec.require or ())]))
    else:
        metrics, why = tuple(spec.metrics), "as asked for"
    if spec.grader is not None and "grader" not in metrics:
        metrics = (*metrics, "grader")
    if spec.judge is not None and "judge" not in metrics:
        metrics = (*metrics, "judge")
    if "field_accuracy" in metrics:
        faulty = sum(parsed(text) is NOT_JSON for text in expected)
        if faulty:
            raise TrainingFailed(
                "invalid_data",
                f"field_accuracy needs expected answers that are JSON, and {faulty} rows have others",
            )
    if spec.json_schema is not None:
        try:
            fits(parsed(expected[0]), validator_of(spec.json_schema))
        except InvalidSchema as error:
            raise TrainingFailed("invalid_schema", f"json_schema: {error}") from error
    tasks: list[Task] = []
    if set(metrics) - OF_SCORES:
        tasks.append("answer")
    if set(metrics) & OF_SCORES:
        tasks.append("score")
    return Plan(metrics, why, tuple(tasks))


def measure(
    spec: EvaluationSpec,
    rows: Sequence[Question],
    skipped: int,
    what: Plan,
    answered: Sequence[Answered],
    judgements: Judgements | None = None,
    rewards: Sequence[Graded] = (),
) -> tuple[EvaluationReport, list[RowFigures]]:
    """The report, and the figures of each row by model and metric."""
    expected = [row.expected for row in rows]
    validator = validator_of(spec.json_schema) if spec.json_schema is not None else None
    measured = [
        Measured(
            expected,
            _compared_parts(rows, one.answers()) or [None] * len(rows),
            [kept.scores for kept in one.kept.get("score", [])],
            [kept.passed or [] for kept in one.kept.get("program", [])],
            spec.extract,
            validator,
        )
        for one in answered
    ]
    tables = [
        {metric: _table(metric, number, one, judgements, rewards) for metric in what.metrics}
        for number, one in enumerate(measured)
    ]
    values = [{metric: row_values(metric, one) for metric, one in of_model.items()} for of_model in tables]
    comparisons, changed = [], []
    for other in range(1, len(spec.models)):
        for metric in what.metrics:
            pair, of_rows = (
                (tables[0][metric], tables[other][metric]),
                (values[0][metric], values[other][metric]),
            )
            if metric == "judge" and judgements is not None:  # of three models each pair has other values
                pair = judgements.pair(other)
                of_rows = (row_values(metric, pair[0]), row_values(metric, pair[1]))
            comparisons.append(_compared(metric, spec, other, pair, of_rows))
        first = next((metric for metric in what.metrics if values[0][metric] is not None), None)
        if first is not None:
            ours, theirs = values[0][first], values[other][first]
            assert ours is not None and theirs is not None, "it is the same metric"
            changed.append(
                _changed(first, spec.models[other].name, rows, (ours, theirs), (measured[0], measured[other]))
            )
    of_models = [
        _of_model(spec.models[at].name, spec.seed, what, answered[at], measured[at], tables[at])
        for at in range(len(spec.models))
    ]
    for of, found in zip(of_models, rewards, strict=False):
        of.ungraded, of.first_grader_error = found.ungraded, found.first_error
    report = EvaluationReport(
        rows=len(rows),
        rows_in_file=spec.rows_in_file,
        skipped=skipped,
        metrics=list(what.metrics),
        why=what.why,
        max_tokens=spec.max_tokens,
        seed=spec.seed,
        models=of_models,
        comparisons=comparisons,
        changed=changed,
        judged=judgements.report([model.name for model in spec.models[1:]]) if judgements else None,
        calibration=judgements.calibration() if judgements else None,
    )
    reasons = list(judge(report, spec.require).reasons) if spec.require else []
    if spec.suite is not None:
        reasons += forgotten(SUITES[spec.suite.name], spec, [one[what.metrics[0]] for one in tables])
    if reasons:
        report.judgement = overall(reasons)
    shown: list[RowFigures] = [
        {
            metric: [_finite(value) for value in found]
            for metric, found in of_model.items()
            if found is not None
        }
        for of_model in values
    ]
    return report, shown


def _table(
    metric: MetricName,
    number: int,
    rows: Measured,
    judgements: Judgements | None,
    rewards: Sequence[Graded],
) -> Table:
    if metric == "grader":
        return means(rewards[number].rewards, scale=None)
    if metric != "judge":
        return table(metric, rows)
    assert judgements is not None, "a judge is asked before anything is measured"
    return judgements.table(number)


def _compared_parts(rows: Sequence[Question], answers: Sequence[str | None]) -> list[str | None]:
    return [
        row.compared(answer) if answer is not None else None
        for row, answer in zip(rows, answers, strict=False)
    ]


def _of_model(
    name: str, seed: int, what: Plan, answered: Answered, measured: Measured, tables: dict[MetricName, Table]
) -> ModelFigures:
    kept = answered.of_task(what.tasks[0])
    errors = [one.error for one in kept if one.error is not None]
    figures = []
    for metric, of_metric in tables.items():
        found = interval(of_metric, seed)
        figures.append(
            Figure(
                metric=metric,
                value=_finite(of_metric.value()),
                low=_finite(found.low),
                high=_finite(found.high),
                interval=found.method,
            )
        )
    return ModelFigures(
        model=name,
        figures=figures,
        unanswered=len(errors),
        first_error=_storable(errors[0]) if errors else None,
        cut=sum(one.finish == "length" for one in kept),
        confusion=_confusion(measured) if OF_LABELS & set(what.metrics) else None,
        fields=_fields(measured) if "field_accuracy" in what.metrics else None,
    )


def _confusion(measured: Measured) -> Confusion | None:
    if len(labels_of(measured)) > _MOST_LABELS:
        return None
    labels, counts = confusion(measured)
    return Confusion(labels=[_storable(label) for label in labels], counts=counts.tolist())


def _fields(measured: Measured) -> list[FieldAccuracy]:
    return [
        FieldAccuracy(field=_storable(name) or "(the value)", rows=rows, right=right)
        for name, rows, right in by_field(measured)[:_MOST_FIELDS]
    ]


def _compared(
    metric: MetricName,
    spec: EvaluationSpec,
    other: int,
    tables: tuple[Table, Table],
    values: tuple[Floats | None, Floats | None],
) -> Comparison:
    kind = KINDS[metric]
    if metric in OF_SCORES and not np.array_equal(tables[0].numbers[:, 1], tables[1].numbers[:, 1]):
        tables = (_nothing(tables[0]), _nothing(tables[1]))  # other tokens: their figures cannot be compared
        values = (None, None)
    found = difference(*tables, spec.seed)
    better = worse = None
    if values[0] is not None and values[1] is not None:
        gap = (values[0] - values[1]) * (1 if kind.higher_is_better else -1)
        better, worse = int((gap > 1e-9).sum()), int((gap < -1e-9).sum())
    conclusion: Literal["better", "worse", "no_difference_seen"] = "no_difference_seen"
    if found.p_value < _SIGNIFICANT:
        conclusion = "better" if (found.value > 0) == kind.higher_is_better else "worse"
    return Comparison(
        against=spec.models[other].name,
        metric=metric,
        difference=_finite(found.value),
        low=_finite(found.low),
        high=_finite(found.high),
        p_value=_finite(found.p_value),
        test=found.test,
        better_rows=better,
        worse_rows=worse,
        conclusion=conclusion,
    )


def _nothing(of: Table) -> Table:
    return Table(of.numbers[:0], of.figure, of.scale)


def _changed(
    metric: MetricName,
    against: str,
    rows: Sequence[Question],
    values: tuple[Floats, Floats],
    measured: tuple[Measured, Measured],
) -> Changed:
    gap = np.nan_to_num(values[0] - values[1]) * (1 if KINDS[metric].higher_is_better else -1)
    order = np.argsort(-gap, kind="stable").tolist()

    def shown(at: int) -> ChangedRow:
        return ChangedRow(
            row=rows[at].place,
            asked=_short(rows[at].text()),
            expected=_short(rows[at].expected),
            answer=_short_or_none(measured[0].answers[at]),
            other_answer=_short_or_none(measured[1].answers[at]),
            value=float(values[0][at]),
            other_value=float(values[1][at]),
        )

    return Changed(
        against=against,
        metric=metric,
        better=[shown(at) for at in order[:_CHANGED] if gap[at] > 1e-9],
        worse=[shown(at) for at in order[::-1][:_CHANGED] if gap[at] < -1e-9],
    )


def _short(text: str) -> str:
    text = _storable(text)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _short_or_none(text: str | None) -> str | None:
    return _short(text) if text is not None else None


def _storable(text: str) -> str:
    """The text without what no database takes."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
