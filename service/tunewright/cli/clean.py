"""`tunewright data clean`: a cleaned copy of a training file, with no service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from tunewright.cli.options import alpaca_option, column_option, examples
from tunewright.cli.output import Output
from tunewright.rows.faults import InvalidData
from tunewright.rows.reading import Reading

if TYPE_CHECKING:
    from tunewright.rows.cleaning.counts import CleaningReport
    from tunewright.rows.cleaning.step import Options

_SHOWN_PLACES = 5


class StepText(click.ParamType[tuple[str, dict[str, Any]]]):
    """STEP or STEP:OPTION=VALUE,OPTION=VALUE, as (step, options). An option that is repeated has several values."""

    name = "STEP[:OPTION=VALUE,...]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, dict[str, Any]]:
        name, _, text = str(value).partition(":")
        given: dict[str, Any] = {}
        for part in filter(None, text.split(",")):
            option, equals, content = part.partition("=")
            if not (option and equals and content):
                self.fail(f"{part!r} is not OPTION=VALUE, in {value!r}", param, ctx)
            given[option] = [*given[option], content] if option in given else [content]
        return name, given


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
@click.option(
    "--step", "steps", type=StepText(), multiple=True, required=True, metavar="STEP[:OPTION=VALUE,...]",
    help="A step, with its options; may be repeated. Steps: html, secrets, personal, injection, control_tokens, "
    "length, language, repetition, duplicates, near_duplicates, leaks, balance. They run in this order.",
)  # fmt: skip
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
    steps: tuple[tuple[str, dict[str, Any]], ...],
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
    from tunewright.rows.cleaning.options import check_steps

    asked = [_options(name, given) for name, given in steps]
    try:
        check_steps(asked, has_validation=validation is not None)
    except ValueError as error:
        hint = " (--validation-file)" if "validation file" in str(error) else ""
        raise click.UsageError(f"{error}{hint}") from None
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


def _options(name: str, given: dict[str, list[str]]) -> Options:
    """The parameters of a step. Raises UsageError with what is possible."""
    from pydantic import ValidationError

    from tunewright.rows.cleaning.options import BY_NAME

    model = BY_NAME.get(name)
    if model is None:
        raise click.UsageError(f"--step {name}: no such step; there are {', '.join(BY_NAME)}")
    fields = {key: field for key, field in model.model_fields.items() if key != "type"}
    values: dict[str, Any] = {}
    for option, texts in given.items():
        if option not in fields:
            known = ", ".join(fields) or "none"
            raise click.UsageError(f"--step {name}: no option {option}; it has {known}")
        is_list = "list" in str(fields[option].annotation)
        if len(texts) > 1 and not is_list:
            raise click.UsageError(f"--step {name}: {option} is there twice")
        values[option] = texts if is_list else None if texts[0] == "none" else texts[0]
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{first['loc'][0]}: " if first["loc"] else ""
        raise click.UsageError(
            f"--step {name}: {where}{first['msg'].removeprefix('Value error, ')}"
        ) from None


def _print(out: Output, path: Path, target: Path | None, report: CleaningReport) -> None:
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
    rows: list[tuple[object, ...]] = []
    for step in report.steps:
        rows.append((step.step, "", "", step.removed, step.changed, step.flagged, ""))
        for name, found in step.found.items():
            shown = ", ".join(map(str, found.places[:_SHOWN_PLACES]))
            more = ", ..." if found.rows > _SHOWN_PLACES else ""
            rows.append(("", name, found.rows, "", "", "", f"{shown}{more}"))
    out.table(["step", "found", "rows", "removed", "changed", "flagged", f"{report.unit}s"], rows)
    if report.groups:
        out.line("")
        out.table(
            ["group", "rows", "kept"], [(group.name, group.rows, group.kept) for group in report.groups]
        )
