"""`tunewright syntheses`: training rows that a teacher makes, which the service serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from tunewright.cli.create import FILE
from tunewright.cli.graders import JsonObject
from tunewright.cli.job_commands import (
    SYNTHESES,
    action_command,
    events_command,
    logs_command,
    pairs,
    steps,
)
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
from tunewright.cli.output import page_size, when
from tunewright.cli.watch import print_created, watch_command
from tunewright_client import Synthesis

_OPTIONS = {
    "n": "answers", "grader": "answers", "min_score": "answers", "keep": "answers", "keep_refusals": "answers",
    "per_row": "paraphrases", "count": "rows", "examples": "rows", "topics": "rows",
}  # fmt: skip
"""The task that each option is for."""


@click.group(cls=Commands)
def syntheses() -> None:
    """Let a served model make training rows: answers, paraphrases, new rows."""


@syntheses.command(
    epilog=examples(
        "tunewright syntheses create --model teacher --file prompts.jsonl --task answers --watch",
        "tunewright syntheses create --model teacher --file train.jsonl --task answers --n 4 \\",
        "    --grader @grader.json --min-score 1 --best",
        "tunewright syntheses create --model teacher --file train.jsonl --task paraphrases --per-row 3",
        "tunewright syntheses create --model teacher --file train.jsonl --task rows --count 200 --topic refunds",
        "tunewright syntheses create --model teacher --file questions.csv --task answers --column text=question",
    )
)
@click.option("--model", "-m", required=True, help="The teacher; of an alias its present target.")
@click.option(
    "--file", "-f", "file", type=FILE, required=True,
    help="The source: a file here, which is uploaded, or an uploaded file's id. It stays as it is.",
)  # fmt: skip
@click.option(
    "--task", required=True, type=click.Choice(("answers", "paraphrases", "rows")),
    help="The teacher answers what the rows ask, rewrites what the user says, or writes new rows.",
)  # fmt: skip
@click.option("--n", type=click.IntRange(1), help="Of answers: how many to each row.  [default: 1]")
@click.option("--grader", type=JsonObject(), help="Of answers: a JSON object or @FILE that scores them.")
@click.option("--min-score", type=float, help="Of answers: those with less are dropped.")
@click.option("--best", is_flag=True, help="Of answers: keep that with the highest score of each row.")
@click.option("--keep-refusals", is_flag=True, help="Of answers: keep those in which the teacher declines.")
@click.option("--per-row", type=click.IntRange(1), help="Of paraphrases: how many of each row.  [default: 1]")
@click.option("--count", type=click.IntRange(1), help="Of rows: how many new ones.")
@click.option(
    "--examples", "shown", type=click.IntRange(1),
    help="Of rows: how many rows the teacher is shown each time.  [default: 4]",
)  # fmt: skip
@click.option("--topic", "topics", multiple=True, help="Of rows: what they are about; may be repeated.")
@click.option("--instructions", help="What the teacher is told besides.")
@click.option("--rows", type=click.IntRange(1), help="How many rows of the file are drawn. Default: all.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="Default: 0.7.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Default: 1.")
@click.option("--max-tokens", type=click.IntRange(1), help="Of an answer; a longer one is dropped.")
@click.option("--seed", type=click.IntRange(0), help="Of the rows that are drawn, and of all answers.")
@click.option(
    "--similarity", type=click.FloatRange(0.5, 0.99), help="From which on rows count as alike.  [default: 0.85]"
)  # fmt: skip
@click.option("--keep-alike", is_flag=True, help="Drop only rows that are the same as others.")
@click.option(
    "--drop-source/--keep-source", "drop_source", default=None,
    help="Whether rows are dropped too that the file has. Default: of paraphrases and rows, not of answers.",
)  # fmt: skip
@column_option
@tag_option
@alpaca_option()
@click.option("--metadata", type=KeyValue(), multiple=True, help="Kept with the synthesis; may be repeated.")
@click.option(
    "--watch", is_flag=True, help="Show its progress until it has ended, as `syntheses watch` does."
)
@on_service
def create(
    remote: Remote,
    *,
    model: str,
    file: str | Path,
    task: str,
    n: int | None,
    grader: dict[str, Any] | None,
    min_score: float | None,
    best: bool,
    keep_refusals: bool,
    per_row: int | None,
    count: int | None,
    shown: int | None,
    topics: tuple[str, ...],
    instructions: str | None,
    rows: int | None,
    temperature: float | None,
    top_p: float | None,
    max_tokens: int | None,
    seed: int | None,
    similarity: float | None,
    keep_alike: bool,
    drop_source: bool | None,
    columns: dict[str, str] | None,
    tags: dict[str, str] | None,
    alpaca: Literal["chat", "template"],
    metadata: tuple[tuple[str, str], ...],
    watch: bool,
) -> int:
    """Start a synthesis and print its id.

    The teacher makes rows of those of the file. Copies are removed, and what is left is a new file, which jobs can
    train on. docs/how-to/make-training-rows.md describes the tasks.
    """
    if similarity is not None and keep_alike:
        raise click.UsageError("give --similarity or --keep-alike, not both")
    options = {
        "n": n, "grader": grader, "min_score": min_score, "keep": "best" if best else None,
        "keep_refusals": keep_refusals or None, "per_row": per_row, "count": count, "examples": shown,
        "topics": list(topics) or None, "instructions": instructions,
    }  # fmt: skip
    deduplicate: dict[str, Any] = {}
    if keep_alike or similarity is not None:
        deduplicate["similarity"] = similarity
    if drop_source is not None:
        deduplicate["source"] = drop_source
    synthesis = remote.client.syntheses.create(
        model,
        file,
        _task(task, {name: value for name, value in options.items() if value is not None}),
        rows=rows,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        seed=seed,
        deduplicate=deduplicate or None,
        data=reading_of(columns, tags, alpaca),
        metadata=dict(metadata) or None,
    )
    return print_created(remote, SYNTHESES, synthesis, watch)


def _task(task: str, options: dict[str, Any]) -> dict[str, Any]:
    shown = {"keep": "--best", "topics": "--topic"}
    for name in options:
        if _OPTIONS.get(name, task) != task:
            option = shown.get(name, f"--{name.replace('_', '-')}")
            raise click.UsageError(f"{option} is for --task {_OPTIONS[name]}, not for {task}")
    if task == "rows" and "count" not in options:
        raise click.UsageError("--task rows needs a --count")
    return {"type": task, **options}


syntheses.add_command(watch_command(SYNTHESES, "tunewright jobs create --model tunewright-tiny --file $FILE"))


@syntheses.command(
    name="list", epilog=examples("tunewright syntheses list", "tunewright syntheses list --limit 3 --json")
)
@limit_option(20)
@on_service
def list_syntheses(remote: Remote, limit: int) -> None:
    """List the syntheses, newest first."""

    def row(one: Synthesis) -> tuple[object, ...]:
        report = one.report
        return (
            one.id, one.status, steps(one), one.task.get("type"), one.model, one.filename,
            f"{report.rows_made}/{report.requests}" if report else None, one.made_file, when(one.created_at),
        )  # fmt: skip

    remote.out.listing(
        remote.client.syntheses.list(limit=page_size(limit)),
        limit,
        ["ID", "STATUS", "ANSWERS", "TASK", "TEACHER", "FILE", "MADE", "RESULT", "CREATED"],
        row,
    )


@syntheses.command(epilog=examples(SYNTHESES.example_of("show")))
@click.argument("synthesis_id")
@on_service
def show(remote: Remote, synthesis_id: str) -> None:
    """Show one synthesis: its request, its result or error, and what was dropped."""
    one = remote.client.syntheses.retrieve(synthesis_id)
    if remote.out.as_json:
        remote.out.json(one)
        return
    report, teacher = one.report, one.teacher
    remote.out.fields(
        [
            ("id", one.id),
            ("status", one.status),
            ("teacher", f"{teacher.name} ({teacher.content})" if teacher else one.model),
            ("file", f"{one.file} ({one.filename})"),
            ("task", pairs({name: value for name, value in one.task.items() if value is not None})),
            ("read as", pairs(one.data)),
            ("seed", one.seed),
            ("result", one.made_file),
            ("dropped", one.dropped_file),
            ("error", one.error.message if one.error else None),
            ("answers", steps(one)),
            ("rows made", f"{report.rows_made} of {report.requests}" if report else None),
            ("prompt tokens", report.prompt_tokens if report else None),
            ("answer tokens", report.completion_tokens if report else None),
            ("mean score", f"{report.scores.mean:.3f}" if report and report.scores else None),
            ("metadata", pairs(one.metadata)),
            ("created", when(one.created_at)),
            ("finished", when(one.finished_at)),
        ]
    )
    if report is not None and report.dropped:
        remote.out.line("")
        remote.out.table(
            ["dropped as", "rows", "places", "the first"],
            [
                (reason, found.rows, " ".join(map(str, found.places[:5])), found.first)
                for reason, found in report.dropped.items()
            ],
        )


syntheses.add_command(logs_command(SYNTHESES, "Print the log of the synthesis's process."))
syntheses.add_command(events_command(SYNTHESES, "step"))
syntheses.add_command(
    action_command(SYNTHESES, "pause", "Pause syntheses: they make room for others, and keep their answers.")
)
syntheses.add_command(action_command(SYNTHESES, "resume", "Let paused syntheses continue."))
syntheses.add_command(action_command(SYNTHESES, "cancel", "Stop syntheses for good; there is no new file."))
