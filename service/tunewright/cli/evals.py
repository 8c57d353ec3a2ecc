"""`tunewright evals`: the answers of models, measured and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

import click

from tunewright.cli.bench import print_loads
from tunewright.cli.create import FILE
from tunewright.cli.graders import JsonObject
from tunewright.cli.job_commands import (
    EVALUATIONS,
    action_command,
    events_command,
    logs_command,
    pairs,
    steps,
)
from tunewright.cli.limits import limit_options, limits_of, verdict_words
from tunewright.cli.options import (
    Commands,
    KeyValue,
    Remote,
    alpaca_option,
    column_option,
    examples,
    limit_option,
    on_service,
    reading_of,
    tag_option,
)
from tunewright.cli.output import measured, page_size, when
from tunewright.cli.ratings import RATING
from tunewright.cli.suites import QUICK_ROWS, suite_options
from tunewright.cli.watch import print_created, watch_command
from tunewright.metrics.names import METRICS, Extract
from tunewright_client import Evaluation, EvaluationReport, Judgement
from tunewright_client.types import ChangedRow, ChangedRows, EvaluationComparison, EvaluationFigure

_EXIT_CODES = {"pass": 0, "fail": 1, "not_enough_data": 3}


@click.group(cls=Commands)
def evals() -> None:
    """Measure and compare the answers of models."""


@evals.command(
    epilog=examples(
        "tunewright evals create --model my-alias --against tunewright-tiny --file test.jsonl --watch",
        "tunewright evals create --model $MODEL --file gsm8k.jsonl --metric exact_match --extract last_number",
        "tunewright evals create --model $MODEL --file test.jsonl --rows 200 --seed 7 --json | jq -r .id",
        "tunewright evals create --model $NEW --against $OLD --file test.jsonl --min accuracy=0.8 "
        "--max-drop accuracy=0.02",
        "tunewright evals create --model $MODEL --suite mmlu --quick --watch",
    )
)
@click.option(
    "--model", "-m", required=True, help="The model that is evaluated; of an alias its present target."
)
@click.option(
    "--against", multiple=True, help="A model that it is compared with, on the same rows; may be repeated."
)
@click.option(
    "--file", "-f", "file", type=FILE, help="The rows: a file here, which is uploaded, or an uploaded file's id."
)  # fmt: skip
@suite_options
@click.option(
    "--metric", "metrics", multiple=True, type=click.Choice(METRICS),
    help="May be repeated. Default: those that suit the expected answers.",
)  # fmt: skip
@click.option("--extract", type=click.Choice(get_args(Extract)), help="The part of answers that is compared.")
@click.option(
    "--json-schema", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with the JSON schema for the metric schema_valid.",
)  # fmt: skip
@click.option("--grader", type=JsonObject(), help="A grader, a JSON object or @FILE, for the metric grader.")
@click.option("--judge", help="A model that compares the answers with those of each --against: metric judge.")
@click.option(
    "--judge-elsewhere", is_flag=True, help="The same by the judge that the operator allows (--judge-url)."
)
@click.option(
    "--calibrate",
    type=click.IntRange(1),
    help="Also let it judge so many pairs whose better answer is known.",
)
@limit_options
@click.option("--rows", type=click.IntRange(1), help="How many rows are drawn. Default: all.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="Default: 0, the likeliest tokens.")
@click.option("--max-tokens", type=click.IntRange(1), help="Of an answer.")
@click.option("--seed", type=click.IntRange(0), help="Of the rows that are drawn, and of all that is random.")
@column_option
@tag_option
@alpaca_option()
@click.option("--metadata", type=KeyValue(), multiple=True, help="Kept with the evaluation; may be repeated.")
@click.option("--watch", is_flag=True, help="Show its progress until it has ended, as `evals watch` does.")
@on_service
def create(
    remote: Remote,
    *,
    model: str,
    against: tuple[str, ...],
    file: str | Path | None,
    suite: dict[str, Any] | None,
    quick: bool,
    metrics: tuple[str, ...],
    extract: str | None,
    json_schema: Path | None,
    grader: dict[str, Any] | None,
    judge: str | None,
    judge_elsewhere: bool,
    calibrate: int | None,
    least: dict[str, float],
    largest: dict[str, float],
    drops: dict[str, float],
    rows: int | None,
    temperature: float | None,
    max_tokens: int | None,
    seed: int | None,
    columns: dict[str, str] | None,
    tags: dict[str, str] | None,
    alpaca: Literal["chat", "template"],
    metadata: tuple[tuple[str, str], ...],
    watch: bool,
) -> int:
    """Start an evaluation and print its id.

    The models answer what the rows of a file ask, or the questions of a suite, and their answers are compared with the
    expected ones. A suite tells what a model has forgotten: an adapter is compared with its base.
    docs/how-to/evaluate-models.md describes the metrics.
    """
    evaluation = remote.client.evaluations.create(
        model,
        file,
        suite=suite,
        against=against,
        metrics=metrics or "auto",
        reading=reading_of(columns, tags, alpaca),
        extract=extract,
        json_schema=_schema(json_schema) if json_schema else None,
        grader=grader,
        judge=_judge(judge, judge_elsewhere, calibrate),
        require=limits_of(least, largest, drops) or None,
        rows=QUICK_ROWS if quick and rows is None else rows,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        metadata=dict(metadata) or None,
    )
    return print_created(remote, EVALUATIONS, evaluation, watch)


def _judge(model: str | None, is_elsewhere: bool, calibrate: int | None) -> dict[str, Any] | None:
    if model is None and not is_elsewhere:
        if calibrate is not None:
            raise click.UsageError("--calibrate is for a judge: give --judge or --judge-elsewhere")
        return None
    given = {"model": model, "external": is_elsewhere or None, "calibrate": calibrate}
    return {name: value for name, value in given.items() if value is not None}


def _schema(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise click.BadParameter(f"{path} is no JSON: {error}", param_hint="--json-schema") from error
    if not isinstance(schema, dict):
        raise click.BadParameter(f"{path} has no JSON object", param_hint="--json-schema")
    return schema


evals.add_command(watch_command(EVALUATIONS, "tunewright files download $FILE"))


@evals.command(
    name="list", epilog=examples("tunewright evals list", "tunewright evals list --limit 3 --json")
)
@limit_option(20)
@on_service
def list_evaluations(remote: Remote, limit: int) -> None:
    """List the evaluations, newest first."""

    def row(one: Evaluation) -> tuple[object, ...]:
        first = one.report.models[0].figures[0] if one.report and one.report.models else None
        shown = f"{first.metric} {_interval(first)}" if first else None
        return one.id, one.status, steps(one), one.model, shown, when(one.created_at)

    remote.out.listing(
        remote.client.evaluations.list(limit=page_size(limit)),
        limit,
        ["ID", "STATUS", "ANSWERS", "MODEL", "FIRST FIGURE", "CREATED"],
        row,
    )


@evals.command(epilog=examples(EVALUATIONS.example_of("show")))
@click.argument("evaluation_id")
@on_service
def show(remote: Remote, evaluation_id: str) -> None:
    """Show one evaluation: its request, and the figures of each model with their 95 % intervals."""
    one = remote.client.evaluations.retrieve(evaluation_id)
    if remote.out.as_json:
        remote.out.json(one)
        return
    report = one.report
    remote.out.fields(
        [
            ("id", one.id),
            ("status", one.status),
            ("file", f"{one.filename} ({one.data})" if one.data else None),
            (
                "suite",
                pairs({key: value for key, value in one.suite.items() if value}) if one.suite else None,
            ),
            *(
                ("model", m.name if m.asked == m.name else f"{m.name} (asked for as {m.asked})")
                for m in one.models
            ),
            ("answers", steps(one)),
            ("error", one.error.message if one.error else None),
            ("rows", f"{report.rows} of {report.rows_in_file}" if report and not report.loads else one.rows),
            ("skipped rows", report.skipped or None if report else None),
            ("load", pairs(one.load) if one.load else None),
            ("metrics", report.why if report else one.metrics),
            ("extract", one.extract if one.extract != "whole" else None),
            ("temperature", f"{one.temperature:g}"),
            ("max tokens", one.max_tokens),
            ("seed", one.seed),
            ("results", one.results_file),
            ("metadata", pairs(one.metadata)),
            ("created", when(one.created_at)),
            ("finished", when(one.finished_at)),
        ]
    )
    if report is not None:
        remote.out.line("")
        _figures(remote, report)
        _judged(remote, report)
        if report.judgement is not None:
            remote.out.line("")
            _verdict(remote, report.judgement)


def _judged(remote: Remote, report: EvaluationReport) -> None:
    if report.judged:
        remote.out.line("")
        remote.out.table(
            ["AGAINST", "JUDGE", "WINS", "TIES", "LOSSES", "INCONSISTENT", "UNJUDGED", "FIRST PREFERRED"],
            [
                (one.against, one.judge, one.wins, one.ties, one.losses, one.inconsistent, one.unjudged,
                 measured(one.first_preferred))
                for one in report.judged
            ],
        )  # fmt: skip
    known = report.calibration
    if known is not None:
        remote.out.line(
            f"The judge agrees with the data on {known.agreement:.1%} of {known.rows} pairs: kappa "
            f"{measured(known.kappa)}"
        )


def _verdict(remote: Remote, judgement: Judgement) -> None:
    remote.out.line(f"verdict: {verdict_words(judgement.verdict)}")
    remote.out.table(
        ["LIMIT", "VERDICT", "REASON"],
        [(one.name, verdict_words(one.verdict), one.message) for one in judgement.reasons],
    )


@evals.command(epilog=examples(EVALUATIONS.example_of("verdict")))
@click.argument("evaluation_id")
@on_service
def verdict(remote: Remote, evaluation_id: str) -> int:
    """Say whether the evaluated model keeps the limits that the evaluation was created with, and why.

    The exit code is 0 for a pass, 1 for a fail, and 3 where the rows are too few to tell.
    """
    report = remote.client.evaluations.retrieve(evaluation_id).report
    if report is None or report.judgement is None:
        why = "has no figures yet" if report is None else "has no limits: create it with --min or --max-drop"
        raise click.ClickException(f"{evaluation_id} {why}.")
    if remote.out.as_json:
        remote.out.json(report.judgement)
    else:
        _verdict(remote, report.judgement)
    return _EXIT_CODES.get(report.judgement.verdict, 1)


def _figures(remote: Remote, report: EvaluationReport) -> None:
    if report.loads:
        print_loads(remote.out, report.loads)
        return
    rows = [
        (of.model, *(_interval(figure) for figure in of.figures), of.unanswered or None, of.cut or None)
        for of in report.models
    ]
    remote.out.table(["MODEL", *(name.upper() for name in report.metrics), "UNANSWERED", "CUT"], rows)


def _interval(figure: EvaluationFigure) -> str:
    return f"{measured(figure.value)} ({measured(figure.low)} to {measured(figure.high)})"


@evals.command(epilog=examples(EVALUATIONS.example_of("compare", "--rows 3")))
@click.argument("evaluation_id")
@click.option("--rows", type=click.IntRange(0, 10), default=3, help="Rows of each kind to show. Default: 3.")
@on_service
def compare(remote: Remote, evaluation_id: str, rows: int) -> None:
    """Compare the evaluated model with the others: each difference with its 95 % interval and its p-value, and the rows
    that differ most."""
    one = remote.client.evaluations.retrieve(evaluation_id)
    report = one.report
    if report is None or not report.comparisons:
        why = "has no figures yet" if report is None else "has one model: create it with --against"
        raise click.ClickException(f"{evaluation_id} {why}.")
    if remote.out.as_json:
        remote.out.json(report.model_dump(include={"comparisons", "changed"}))
        return
    remote.out.table(
        ["AGAINST", "METRIC", "DIFFERENCE", "P", "BETTER", "WORSE", "CONCLUSION"],
        map(_compared, report.comparisons),
    )
    for changed in report.changed:
        _changed(remote, changed, rows)


def _compared(one: EvaluationComparison) -> tuple[object, ...]:
    difference = f"{measured(one.difference)} ({measured(one.low)} to {measured(one.high)})"
    p_value = "-" if one.p_value is None else f"{one.p_value:.4f}"
    conclusion = one.conclusion.replace("_", " ")
    return one.against, one.metric, difference, p_value, one.better_rows, one.worse_rows, conclusion


def _changed(remote: Remote, changed: ChangedRows, most: int) -> None:
    for word, found in (("better", changed.better), ("worse", changed.worse)):
        for row in found[:most]:
            remote.out.line("")
            remote.out.line(f"row {row.row}: {word} than {changed.against} in {changed.metric}")
            remote.out.fields(_row(row))


def _row(row: ChangedRow) -> list[tuple[str, object]]:
    return [
        ("asked", row.asked),
        ("expected", row.expected),
        ("answer", f"{row.answer} ({measured(row.value)})"),
        ("other answer", f"{row.other_answer} ({measured(row.other_value)})"),
    ]


for command in RATING:
    evals.add_command(command)
evals.add_command(logs_command(EVALUATIONS, "Print the log of the evaluation's process."))
evals.add_command(events_command(EVALUATIONS, "step"))
evals.add_command(
    action_command(
        EVALUATIONS, "pause", "Pause evaluations: they make room for others, and keep their answers."
    )
)
evals.add_command(action_command(EVALUATIONS, "resume", "Let paused evaluations continue."))
evals.add_command(action_command(EVALUATIONS, "cancel", "Stop evaluations for good; their answers are gone."))
