"""`tunewright data`: look at data files of this machine, with no service."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from tunewright.cli.clean import clean
from tunewright.cli.data_report import report
from tunewright.cli.options import Commands, alpaca_option, column_option, examples, for_shell, tag_option
from tunewright.cli.output import Output
from tunewright.rows.formats import FileReport, inspect
from tunewright.rows.reading import Reading


@click.group(cls=Commands)
def data() -> None:
    """Check, report on and clean training data on this machine. No service has to run."""


@data.command(
    epilog=examples(
        "tunewright data check train.jsonl",
        "tunewright data check gsm8k.parquet --column prompt=question --column completion=answer",
        "tunewright data check *.jsonl --json | jq .rows",
    )
)
@click.argument(
    "paths",
    metavar="PATH...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@column_option
@tag_option
@alpaca_option()
@click.option(
    "--validation-share", type=click.FloatRange(0, 0.5, min_open=True),
    help='Also count the rows that a job with the validation file "auto" holds out.',
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def check(
    paths: tuple[Path, ...],
    columns: dict[str, str] | None,
    tags: dict[str, str] | None,
    alpaca: Literal["chat", "template"],
    validation_share: float | None,
    as_json: bool,
) -> int:
    """Check files as the service does when they are uploaded: format, rows, and faults with their lines.

    The exit code is 1 where a file has a fault.
    """
    reading = Reading(columns=columns, tags=tags, alpaca=alpaca, held_out_share=validation_share or 0.0)
    out = Output(as_json)
    failed = False
    for number, path in enumerate(paths):
        with path.open("rb") as file:
            report = inspect(file, reading)
        failed = failed or report.problem is not None
        if as_json:
            held_out = {"held_out": report.held_out} if validation_share else {}
            out.json({"file": str(path), **report.as_json(), **held_out})
            continue
        if number:
            out.line("")
        _print(out, path, report, validation_share)
    return 1 if failed else 0


def _print(out: Output, path: Path, report: FileReport, share: float | None) -> None:
    is_good = report.problem is None
    out.fields(
        [
            ("file", path),
            ("status", "processed" if is_good else "error"),
            ("container", report.container),
            ("format", report.format),
            ("rows for", report.kind),
            ("rows", report.rows if is_good else None),
            ("held out", report.held_out if share and is_good else None),
            ("ignored fields", ", ".join(report.ignored) or None),
            ("fault", report.refusal),
            *[("fault", for_shell(str(fault))) for fault in report.faults],
            ("more faults", "maybe" if report.has_more_faults else None),
        ]
    )


data.add_command(report)
data.add_command(clean)
