"""`tunewright data report`: what is in a data file, in tokens of a model; with no service, or of an uploaded file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from tunewright.cli.create import FILE
from tunewright.cli.options import (
    Remote,
    alpaca_option,
    column_option,
    examples,
    for_shell,
    on_service,
    read_template,
    tag_option,
)
from tunewright.cli.output import Output
from tunewright.errors import cut
from tunewright.rows.report.models import Balance, DataReport, Lengths, PairLengths, Problem, Sample, Tokens

_SECONDS = 600
_BAR = 40
"""Characters of the longest bar."""


@click.command(
    epilog=examples(
        "tunewright data report train.jsonl",
        "tunewright data report train.jsonl --model ./Qwen2-7B --max-length 1024 --svg lengths.svg",
        "tunewright data report file-7aZkQ3vJ0c9yW2mXb4LrTn5e --model qwen --json | jq .tokens",
    )
)
@click.argument("file", type=FILE)
@click.option(
    "--model", "-m",
    help="A folder, or the embedded base's name; for an uploaded file a base's name there. Adds what is in tokens.",
)  # fmt: skip
@click.option("--max-length", type=click.IntRange(8), help="Tokens at which a job cuts.  [default: a job's]")
@click.option(
    "--chat-template-file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Jinja template in place of the model's own.",
)  # fmt: skip
@column_option
@tag_option
@alpaca_option(auto=True)
@click.option(
    "--svg",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="Write the histogram there.",
)
@on_service
def report(
    remote: Remote,
    *,
    file: str | Path,
    model: str | None,
    max_length: int | None,
    chat_template_file: Path | None,
    columns: dict[str, str] | None,
    tags: dict[str, str] | None,
    alpaca: Literal["auto", "chat", "template"],
    svg: Path | None,
) -> int:
    """Report on FILE, a file here or the id of an uploaded one: rows, lengths, duplicates, and problems by line.

    With a model also its tokens, what is cut, and some rows with their trained tokens marked. For a file here no
    service has to run. The exit code is 1 where no job can use the file as it is.
    """
    template = read_template(chat_template_file)
    if isinstance(file, Path):
        name = file.name
        made = _local(file, model, max_length, template, {"columns": columns, "tags": tags, "alpaca": alpaca})
    else:
        answer = remote.client.files.report(
            file,
            model,
            max_length=max_length,
            chat_template=template,
            columns=columns,
            tags=tags,
            alpaca=alpaca,
        )
        name, made = answer.filename, DataReport.model_validate(answer.model_dump())
    if svg is not None:
        from tunewright.rows.report.picture import picture

        svg.write_text(picture(made, name), encoding="utf-8")
    if remote.out.as_json:
        remote.out.json({"file": str(file), **made.model_dump(mode="json")})
    else:
        _print(remote.out, str(file), made)
    return 1 if any(problem.severity == "error" for problem in made.problems) else 0


def _local(
    file: Path, model: str | None, max_length: int | None, template: str | None, data: dict[str, Any]
) -> DataReport:
    # loads the service, which other commands do not need
    from tunewright.config import EMBEDDED_BASE, Base, embedded_base_path
    from tunewright.errors import TunewrightError
    from tunewright.kinds.data import DataOptions
    from tunewright.kinds.data_report import Asked, report_file
    from tunewright.registry.bases import BaseUnavailable, inspect_base

    try:
        base = None
        if model is not None:
            source = str(embedded_base_path()) if model == EMBEDDED_BASE else model
            base = inspect_base(Base(model, source))
        return report_file(
            Asked(
                file,
                base=base,
                data=DataOptions(**data),
                chat_template=template,
                max_length=max_length,
                seconds=_SECONDS,
            )
        )
    except TunewrightError as error:
        raise click.ClickException(for_shell(str(error))) from error
    except BaseUnavailable as error:
        raise click.ClickException(f"{error}; the embedded base is {EMBEDDED_BASE}") from error


def _pair_fields(pairs: PairLengths) -> list[tuple[str, object]]:
    fields: list[tuple[str, object]] = [
        (f"{name} answers", f"{lengths.mean:g} characters, at most {lengths.longest:,}")
        for name, lengths in (("chosen", pairs.chosen), ("rejected", pairs.rejected))
        if lengths
    ]
    return [*fields, ("chosen longer", f"in {pairs.chosen_longer:,}"), ("same answers", pairs.identical)]


def _print(out: Output, name: str, made: DataReport) -> None:
    turns, tokens = made.turns, made.tokens
    partial = "" if made.is_complete else " (not all of the file was read)"
    out.fields(
        [
            ("file", name),
            ("container", made.container),
            ("format", made.format),
            ("rows for", made.kind),
            ("rows", f"{made.rows:,}{partial}"),
            ("turns", f"{turns.messages:,}, {turns.mean:g} a row, at most {turns.most}" if turns else None),
            (
                "roles",
                ", ".join(f"{role} {count:,}" for role, count in turns.roles.items()) if turns else None,
            ),
            *(_pair_fields(made.pairs) if made.pairs else []),
            ("copies", made.duplicates.copies),
            *((f"by {one.by}", _groups(one)) for one in made.balance),
            ("ignored fields", ", ".join(made.ignored_fields) or None),
            *(_token_fields(tokens) if tokens else []),
        ]
    )
    lengths = tokens.lengths if tokens else made.characters
    if lengths is not None:
        out.line("")
        _print_lengths(out, lengths)
    for sample in made.samples:
        out.line("")
        _print_sample(out, sample)
    for problem in [*made.problems, *made.flags]:
        out.line("")
        _print_problem(out, problem)


def _groups(balance: Balance) -> str:
    return ", ".join(f"{cut(one.name, 40)} {one.rows:,}" for one in balance.groups)


def _token_fields(tokens: Tokens) -> list[tuple[str, object]]:
    partial = "" if tokens.is_complete else f" (of the first {tokens.rows:,} rows)"
    return [
        ("model", tokens.model),
        ("examples", f"{tokens.examples:,}{partial}"),
        ("tokens", f"{tokens.tokens:,}, trained {tokens.trained:,}{partial}"),
        ("cut at", f"{tokens.max_length:,} tokens: {tokens.cut:,} examples"),
        ("lost by it", f"{tokens.lost_trained:,} trained tokens; {tokens.left_out:,} examples left out"),
    ]


def _print_lengths(out: Output, lengths: Lengths) -> None:
    shown = [f"{percent} % {length:,}" for percent, length in lengths.percentiles.items()]
    out.fields([(lengths.unit, f"mean {lengths.mean:,}, {', '.join(shown)}, longest {lengths.longest:,}")])
    most = max(one.count for one in lengths.histogram)
    out.table(
        [lengths.unit.upper(), "COUNT", ""],
        [
            [f"{one.start:,} to {one.end:,}", f"{one.count:,}", "\u2588" * -(-_BAR * one.count // most)]
            for one in lengths.histogram
        ],
    )


def _print_sample(out: Output, sample: Sample) -> None:
    place = f"line {sample.line}" if sample.line is not None else f"row {sample.row}"
    out.line(f"{place}: {sample.tokens:,} tokens, {sample.trained:,} of them trained")
    out.marked((segment.text, segment.trained) for segment in sample.segments)


def _print_problem(out: Output, problem: Problem) -> None:
    out.fields([(problem.severity, problem.message), ("what to do", for_shell(problem.fix))])
    for row in problem.rows:
        place = f"line {row.line}" if row.line is not None else f"row {row.row}"
        out.line(f"  {place}: {row.message}")
