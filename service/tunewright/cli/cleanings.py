"""`tunewright cleanings`: cleaned copies of files, made by a service; without one, `tunewright data clean` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from tunewright.cli.create import FILE
from tunewright.cli.job_commands import (
    CLEANINGS,
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
from tunewright.cli.steps import StepTexts, counts, step_option, step_options
from tunewright.cli.watch import print_created, watch_command
from tunewright_client import Cleaning


@click.group(cls=Commands)
def cleanings() -> None:
    """Make cleaned copies of training files in the service."""


@cleanings.command(
    epilog=examples(
        "tunewright cleanings create --file train.jsonl --step html --step duplicates --step near_duplicates --watch",
        "tunewright cleanings create --file train.jsonl --step secrets:action=mask --step length:min_answer=5",
        "tunewright cleanings create --file train.jsonl --step leaks --validation-file valid.jsonl --json | jq -r .id",
    )
)
@click.option(
    "--file", "-f", "file", type=FILE, required=True,
    help="The file to clean: a file here, which is uploaded, or an uploaded file's id. It stays as it is.",
)  # fmt: skip
@step_option
@click.option("--validation-file", type=FILE, help="The file whose rows the step leaks removes.")
@column_option
@tag_option
@alpaca_option()
@click.option("--metadata", type=KeyValue(), multiple=True, help="Kept with the cleaning; may be repeated.")
@click.option(
    "--watch", is_flag=True, help="Show its progress until it has ended, as `cleanings watch` does."
)
@on_service
def create(
    remote: Remote,
    *,
    file: str | Path,
    steps: StepTexts,
    validation_file: str | Path | None,
    columns: dict[str, str] | None,
    tags: dict[str, str] | None,
    alpaca: Literal["chat", "template"],
    metadata: tuple[tuple[str, str], ...],
    watch: bool,
) -> int:
    """Start a cleaning and print its id.

    The rows of a file go through the steps, and those that are left are a new file, which jobs can train on.
    docs/how-to/clean-data.md describes the steps and their options.
    """
    asked = step_options(steps, has_validation=validation_file is not None)
    cleaning = remote.client.cleanings.create(
        file,
        [_step(options.model_dump(mode="json", exclude_unset=True), name, validation_file)
         for options, (name, _) in zip(asked, steps, strict=True)],
        data=reading_of(columns, tags, alpaca),
        metadata=dict(metadata) or None,
    )  # fmt: skip
    return print_created(remote, CLEANINGS, cleaning, watch)


def _step(options: dict[str, Any], name: str, validation_file: str | Path | None) -> dict[str, Any]:
    """A step of the request, with the options that were given."""
    return {"type": name, **options, **({"against": validation_file} if name == "leaks" else {})}


cleanings.add_command(watch_command(CLEANINGS, "tunewright jobs create --model tunewright-tiny --file $FILE"))


@cleanings.command(
    name="list", epilog=examples("tunewright cleanings list", "tunewright cleanings list --limit 3 --json")
)
@limit_option(20)
@on_service
def list_cleanings(remote: Remote, limit: int) -> None:
    """List the cleanings, newest first."""

    def row(cleaning: Cleaning) -> tuple[object, ...]:
        report = cleaning.report
        return (
            cleaning.id, cleaning.status, steps(cleaning), cleaning.filename,
            f"{report.rows_after}/{report.rows_before}" if report else None, cleaning.cleaned_file,
            when(cleaning.created_at),
        )  # fmt: skip

    remote.out.listing(
        remote.client.cleanings.list(limit=page_size(limit)),
        limit,
        ["ID", "STATUS", "READ", "FILE", "LEFT", "RESULT", "CREATED"],
        row,
    )


@cleanings.command(epilog=examples(CLEANINGS.example_of("show")))
@click.argument("cleaning_id")
@on_service
def show(remote: Remote, cleaning_id: str) -> None:
    """Show one cleaning: its request, its result or error, and what each step did."""
    cleaning = remote.client.cleanings.retrieve(cleaning_id)
    if remote.out.as_json:
        remote.out.json(cleaning)
        return
    report = cleaning.report
    remote.out.fields(
        [
            ("id", cleaning.id),
            ("status", cleaning.status),
            ("file", f"{cleaning.file} ({cleaning.filename})"),
            *(("step", _told(step)) for step in cleaning.steps),
            ("read as", pairs(cleaning.data)),
            ("result", cleaning.cleaned_file),
            ("error", cleaning.error.message if cleaning.error else None),
            ("rows read", steps(cleaning)),
            ("format", report.format if report else None),
            ("rows before", report.rows_before if report else None),
            ("rows after", report.rows_after if report else None),
            ("rows changed", report.changed if report else None),
            ("metadata", pairs(cleaning.metadata)),
            ("created", when(cleaning.created_at)),
            ("finished", when(cleaning.finished_at)),
        ]
    )
    if report is not None:
        remote.out.line("")
        counts(remote.out, report)


def _told(step: dict[str, Any]) -> str:
    """A step with its options, as `--step` takes them."""
    told: list[str] = []
    for name, value in step.items():
        if name != "type":
            told += [
                f"{name}={one}" for one in (value if isinstance(value, list) else [value]) if one is not None
            ]
    return f"{step['type']}:{','.join(told)}" if told else str(step["type"])


cleanings.add_command(logs_command(CLEANINGS, "Print the log of the cleaning's process."))
cleanings.add_command(events_command(CLEANINGS, "step"))
cleanings.add_command(
    action_command(CLEANINGS, "pause", "Pause cleanings: they make room for others, and keep what is done.")
)
cleanings.add_command(action_command(CLEANINGS, "resume", "Let paused cleanings continue."))
cleanings.add_command(action_command(CLEANINGS, "cancel", "Stop cleanings for good; there is no new file."))
