"""`tunewright plan`: what a job would need and what is advised, with no service running."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunewright.cli.create import METHODS, mix_option
from tunewright.cli.options import column_option, examples, for_shell, read_template
from tunewright.cli.output import Output, duration, size

if TYPE_CHECKING:
    from tunewright.kinds.data import DataOptions
    from tunewright.plan.planning import PlannedRows


_LOCAL = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    epilog=examples(
        "tunewright plan ./Qwen2-7B train.jsonl",
        "tunewright plan ./Qwen2-7B train.jsonl --machine 8xA100-80GB --type full",
    )
)
@click.argument("model")
@click.argument("file", type=_LOCAL)
@mix_option(_LOCAL)
@click.option("--machine", metavar="TEXT", help="A machine such as 8xA100-80GB or H100.  [default: this one]")
@click.option("--type", "type_", type=click.Choice(["auto", "lora", "qlora", "full"]), default="auto")
@click.option("--method", type=click.Choice(METHODS), default="supervised")
@click.option("--rank", type=click.IntRange(1, 512), help="Rank of the adapter.")
@click.option("--batch-size", type=click.IntRange(1, 4096), help="Rows per optimizer step.")
@click.option("--max-length", type=click.IntRange(8), help="Largest length of a row in tokens.")
@click.option("--gpus", type=click.IntRange(1, 64), help="GPUs that train together.  [default: 1]")
@click.option("--learning-rate", type=click.FloatRange(0, 1, min_open=True))
@click.option("--chat-template-file", type=_LOCAL, help="Jinja template in place of the model's own.")
@click.option(
    "--price-per-hour", type=click.FloatRange(0, min_open=True), help="Of one device: tells the price."
)
@click.option("--currency", default="USD", show_default=True, help="Of that price.")
@click.option(
    "--device-watts", type=click.FloatRange(0, min_open=True),
    help="Of one device: tells the energy.  [default: the card's]",
)  # fmt: skip
@column_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def plan(
    model: str,
    file: Path,
    mix: dict[Path, float],
    machine: str | None,
    type_: str,
    method: str,
    rank: int | None,
    batch_size: int | None,
    max_length: int | None,
    gpus: int | None,
    learning_rate: float | None,
    chat_template_file: Path | None,
    price_per_hour: float | None,
    currency: str,
    device_watts: float | None,
    columns: dict[str, str] | None,
    as_json: bool,
) -> None:
    """Say what fine-tuning MODEL (a folder, or the embedded base's name) on FILE would need, and what is advised.

    Reads the model's config and the headers of its weights, and tokenizes the file. Nothing is trained.
    """
    # loads the service, which other commands do not need
    from tunewright.config import EMBEDDED_BASE, Base, ProcessOptions, embedded_base_path
    from tunewright.engine.devices import find_devices
    from tunewright.errors import InvalidRequest
    from tunewright.kinds.data import DataOptions
    from tunewright.kinds.fine_tuning.planning import PlannedFile, machine_described, plan_job, this_machine
    from tunewright.plan.cost import Rates
    from tunewright.plan.options import HyperparameterOptions, TuningOptions
    from tunewright.registry.bases import BaseUnavailable, inspect_base

    template = read_template(chat_template_file)
    source = str(embedded_base_path()) if model == EMBEDDED_BASE else model
    tuning = TuningOptions(
        type=type_,
        rank=rank or "auto",
        batch_size=batch_size or "auto",
        max_length=max_length or "auto",
        learning_rate=learning_rate or "auto",
        gpus=gpus or "auto",
    )
    try:
        for path in {file: 1.0} | mix:
            _check_rows(path, DataOptions(columns=columns), method)
        where = machine_described(machine) if machine else this_machine(find_devices(ProcessOptions()), {})
        made = plan_job(
            inspect_base(Base(model, source)),
            [PlannedFile(path, str(path), weight) for path, weight in ({file: 1.0} | mix).items()],
            where,
            tuning=tuning,
            hyperparameters=HyperparameterOptions(),
            max_rank=512,
            method=method,
            chat_template=template,
            data=DataOptions(columns=columns),
            rates=Rates(price_per_hour=price_per_hour, currency=currency, watts=device_watts),
            seconds=_LONGEST,
        )
    except InvalidRequest as error:
        raise click.ClickException(for_shell(str(error))) from error
    except BaseUnavailable as error:
        raise click.ClickException(f"{error}; the embedded base is {EMBEDDED_BASE}") from error
    out = Output(as_json)
    if as_json:
        out.json(made)
        return
    out.fields(
        [
            ("model", f"{model}, {made.parameters:,} parameters"),
            ("data", f"{made.rows} rows, {made.tokens:,} tokens an epoch, {made.steps} steps"),
            *_files(made.files),
            ("machine", f"{made.devices} x {made.machine}, {size(made.available)} of each available"),
            ("advised", f"{made.advised}: {made.why}"),
            (f"{made.type} fits", "yes" if made.fits else "no"),
            ("to make it fit", made.change.change if made.change else made.sharding),
        ]
    )
    components = [name for name in made.methods[0].memory if name != "total"]
    out.table(
        ["METHOD", "FITS", "TRAINED", "TOTAL", *(name.upper() for name in components), "TIME", "COST"],
        [
            [
                method.type,
                "yes" if method.fits else "no",
                f"{method.trainable_parameters:,}",
                size(method.memory["total"]),
                *(size(method.memory[name]) for name in components),
                f"{duration(method.seconds.least)} to {duration(method.seconds.most)}"
                if method.seconds
                else None,
                f"{method.cost.least.describe()} to {method.cost.most.describe()}" if method.cost else None,
            ]
            for method in made.methods
        ],
    )
    out.table(
        ["OPTION", "VALUE", "REASON", "SOURCE"],
        [[choice.name, choice.value, choice.reason, choice.source] for choice in made.options],
    )
    for warning in made.warnings:
        out.note(f"{warning.code}: {warning.message}")


_FIRST_ROWS = 100
_LONGEST = 24 * 3600.0
"""Seconds: a person waits for it, and may stop it."""


def _check_rows(file: Path, data: DataOptions, method: str) -> None:
    """Raises InvalidRequest where the first rows are not what the method learns from."""
    from tunewright.errors import InvalidRequest
    from tunewright.kinds.data import why_unusable
    from tunewright.rows.formats import inspect

    with file.open("rb") as opened:
        found = inspect(opened, data.reading(True), most_rows=_FIRST_ROWS)
    why = found.problem
    if why is None and found.format and found.kind:
        why = why_unusable(found.format, found.kind, method)
    if why:
        raise InvalidRequest(f"{file} cannot be planned with: {why}.", param="training_file")


def _files(files: list[PlannedRows]) -> list[tuple[str, object]]:
    """What an epoch has of each of several files."""
    if len(files) == 1:
        return []
    return [
        (one.file, f"weight {one.weight:g}: {one.rows} rows, {one.tokens:,} tokens an epoch") for one in files
    ]
