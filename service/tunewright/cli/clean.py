"""`tunewright data clean`: a cleaned copy of a training file, with no service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from tunewright.cli.options import alpaca_option, column_option, examples
from tunewright.cli.output import Output
from tunewright.cli.steps import StepTexts, counts, step_option, step_options
from tunewright.rows.faults import InvalidData
from tunewright.rows.reading import Reading
from tunewright_client import CleaningReport

if TYPE_CHECKING:
    from tunewright.rows.cleaning import counts as made


@click.command(
    epilog=examples(
        "tunewright data clean train.jsonl -o clean.jsonl --step html --step duplicates --step near_duplicates",
        "tunewright data clean train.jsonl -o clean.jsonl --step secrets:action=mask --step personal:region=DE",
        "tunewright data clean train.jsonl -o clean.jsonl --step language:keep=en,keep=de --step length:min_answer=5",
        "tunewright data clean train.jsonl -o clean.jsonl --step leaks --validation-file valid.jsonl",
        "tunewright data clean kto.csv -o clean.jsonl --step balance:by=label,ratio=2",
    )
)
@click.argument("path", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o", "--output", "target", required=True, type=click.Path(path_type=Path), metavar="OUT",
    help="The cleaned file (JSONL). It must not exist.",
)  # fmt: skip
@step_option
@click.option(
    "--validation-file", "validation", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="The file whose rows the step leaks removes.",
)  # fmt: skip
@column_option
@alpaca_option()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def clean(
    path: Path,
    target: Path,
    steps: StepTexts,
    validation: Path | None,
    columns: dict[str, str] | None,
    alpaca: Literal["chat", "template"],
    as_json: bool,
) -> int:
    """Write a cleaned copy of FILE to OUT, and count what each step removed, changed and flagged.

    OUT has the rows that are left, in their order, in the canonical form of their kind. docs/how-to/clean-data.md
    describes the steps and their options.
    """
    from tunewright.rows.cleaning.clean import NothingLeft, clean_file

    asked = step_options(steps, has_validation=validation is not None)
    if target.exists() or target.is_symlink():
        raise click.UsageError(f"{target} exists; name a file that does not, or remove it")
    if not target.parent.is_dir():
        raise click.UsageError(f"{target.parent} is no folder")
    out = Output(as_json)
    reading = Reading(columns=columns, alpaca=alpaca)
    try:
        report = clean_file(path, target, asked, reading=reading, validation=validation)
    except NothingLeft as nothing:
        _print(out, path, None, nothing.report)
        raise click.ClickException(f"{nothing}; {target} was not written") from None
    except InvalidData as error:
        raise click.ClickException(f"{path}: {error}") from None
    _print(out, path, target, report)
    return 0


def _print(out: Output, path: Path, target: Path | None, report: made.CleaningReport) -> None:
    if out.as_json:
        out.json({"file": str(path), "output": str(target) if target else None, **report.model_dump()})
        return
    out.fields(
        [
            ("file", path),
            ("output", target),
            ("format", report.format),
            ("rows for", report.kind),
            ("rows before", report.rows_before),
            ("rows after", report.rows_after),
            ("rows changed", report.changed),
        ]
    )
    out.line("")
    counts(out, CleaningReport.model_validate(report.model_dump()))
