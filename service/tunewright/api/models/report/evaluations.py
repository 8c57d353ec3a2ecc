"""What is said of the evaluations of a model, and of the gates that have judged it."""

from __future__ import annotations

from collections.abc import Iterable

from tunewright.api.models.report.document import (
    Heading,
    Pairs,
    Part,
    Result,
    Section,
    Table,
    Text,
    number,
    ranged,
    when,
)
from tunewright.api.models.report.facts import Evaluated, Facts
from tunewright.evaluator.report import ChangedRow, EvaluationReport, LoadFigures, Percentiles
from tunewright.kinds.evaluation.kind import request_of
from tunewright.metrics.verdicts import Reason, words

_CHANGED, _FIELDS = 3, 20


def evaluations_of(facts: Facts) -> Section:
    if not facts.evaluations:
        return Section(
            "Evaluations", (Text("It was not evaluated here, or its evaluations are no longer listed."),)
        )
    return Section("Evaluations", tuple(part for one in facts.evaluations for part in _evaluation(one)))


def _evaluation(one: Evaluated) -> Iterable[Part]:
    job, report = one.job, one.report
    request = request_of(job)
    yield Heading(f"{one.data[0]} ({job.id})")
    yield Pairs((
        ("finished", when(job.finished_at) if job.finished_at else None),
        ("sha256 of the file", request.sha256 or None),
        ("rows", f"{report.rows:,} of {report.rows_in_file:,}, seed {report.seed}" if report.models else None),
        ("compared part", request.extract if request.extract != "whole" else None),
        ("temperature", number(request.temperature) if request.temperature else None),
        ("metrics", report.why),
        ("verdict", words(report.judgement.verdict) if report.judgement else None),
    ))  # fmt: skip
    if report.judgement is not None:
        yield _reasons(report.judgement.reasons)
    if report.loads:
        yield _loads(report.loads)
    if not report.models:
        return
    yield Table(
        ("model", *report.metrics, "unanswered"),
        tuple(
            (
                of.model,
                *(ranged(figure.value, figure.low, figure.high) for figure in of.figures),
                str(of.unanswered),
            )
            for of in report.models
        ),
    )
    if report.comparisons:
        yield Table(
            ("against", "metric", "difference", "p", "conclusion"),
            tuple(
                (
                    found.against,
                    found.metric,
                    ranged(found.difference, found.low, found.high),
                    number(found.p_value),
                    found.conclusion.replace("_", " "),
                )
                for found in report.comparisons
            ),
        )
    yield from _details(report)


def _loads(loads: Iterable[LoadFigures]) -> Table:
    """Milliseconds, at the 50th and the 99th percentile."""

    def times(of: Percentiles | None) -> str:
        return "-" if of is None else f"{number(of.p50)} / {number(of.p99)}"

    return Table(
        (
            "model",
            "at once",
            "tokens/s",
            "first token, ms",
            "between tokens, ms",
            "whole, ms",
            "price of a million tokens",
        ),
        tuple(
            (
                one.model,
                str(one.at_once),
                number(one.tokens_per_second),
                times(one.first_token),
                times(one.between_tokens),
                times(one.whole),
                f"{number(one.price_per_million_tokens)} {one.currency or ''}".strip(),
            )
            for one in loads
        ),
    )


def _details(report: EvaluationReport) -> Iterable[Part]:
    """What is told of the evaluated model alone, and the rows that changed most."""
    of = report.models[0]
    if of.fields:
        right = tuple((one.field, str(one.rows), str(one.right)) for one in of.fields[:_FIELDS])
        yield Table(("field", "rows", "right"), right)
    if of.confusion is not None and len(of.confusion.labels) <= _FIELDS:
        labels = of.confusion.labels
        yield Table(
            ("expected, and below answered", *labels),
            tuple(
                (label, *map(str, counts)) for label, counts in zip(labels, of.confusion.counts, strict=True)
            ),
        )
    for changed in report.changed:
        rows = tuple(
            _changed(word, row)
            for word, found in (("better", changed.better), ("worse", changed.worse))
            for row in found[:_CHANGED]
        )
        if rows:
            yield Text(f"The rows that differ most from {changed.against} in {changed.metric}:")
            yield Table(("", "row", "asked", "expected", "answer", f"answer of {changed.against}"), rows)


def _changed(word: str, row: ChangedRow) -> tuple[str, ...]:
    return word, str(row.row), row.asked, row.expected, row.answer or "-", row.other_answer or "-"


def _reasons(reasons: Iterable[Reason]) -> Table:
    return Table(
        ("limit", "verdict", "reason"), tuple((one.name, words(one.verdict), one.message) for one in reasons)
    )


def gates_of(facts: Facts) -> Section | None:
    if not facts.gates:
        return None
    rows = tuple(
        (
            f"{one.version.alias}, version {one.version.version}",
            when(one.version.at),
            one.version.who or "-",
            words(one.verdict.verdict)
            + (" (set by force)" if one.version.gate and one.version.gate.forced else ""),
            "; ".join(reason.message for reason in one.verdict.reasons) or "-",
            one.verdict.evaluation or "-",
        )
        for one in facts.gates
    )
    return Section("Gates", (Table(("alias", "when", "who", "verdict", "reasons", "evaluation"), rows),))


def results_of(evaluations: Iterable[Evaluated]) -> Iterable[Result]:
    """Of each file the figures of its newest evaluation."""
    seen: set[tuple[str, str]] = set()
    for one in evaluations:
        name, sha256 = one.data
        for figure in one.report.models[0].figures if one.report.models else ():
            if figure.value is not None and (sha256, figure.metric) not in seen:
                seen.add((sha256, figure.metric))
                yield Result(name, sha256, figure.metric, figure.value)
