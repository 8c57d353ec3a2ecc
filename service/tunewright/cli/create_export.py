"""`tunewright exports create`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import click

from tunewright.cli.create import FILE
from tunewright.cli.job_commands import EXPORTS
from tunewright.cli.options import KeyValue, Remote, Weighted, examples, on_service
from tunewright.cli.watch import print_created

_ONE, _OTHER = "ft:tunewright-tiny:pirate:Zk3mP0aY", "ft:tunewright-tiny:formal:Bq1nR5tX"
_METHODS = ("linear", "soup", "ties", "dare")


@click.command(
    epilog=examples(
        f"tunewright exports create --model {_ONE} --format merged --watch",
        f"tunewright exports create --model {_ONE} --format awq --group-size largest \\",
        "    --calibration-file texts.jsonl --validation-file valid.jsonl --watch",
        "tunewright exports create --format adapter --combine ties --suffix both \\",
        f"    --model {_ONE}=0.7 --model {_OTHER}=0.3",
    )
)
@click.option(
    "--model", "-m", "models", metavar="MODEL[=WEIGHT]", type=Weighted(), required=True, multiple=True,
    help="An adapter; for awq also a base or a whole model. Repeat it to combine adapters, each times its weight.",
)  # fmt: skip
@click.option(
    "--format", "format", type=click.Choice(["merged", "awq", "adapter"]), required=True,
    help="merged: the base in 16 bits with the adapter in its weights; awq: 4 bits (an adapter is merged first); "
    "adapter: one adapter of several.",
)  # fmt: skip
@click.option(
    "--combine", type=click.Choice(_METHODS),
    help="How several become one. linear: the weighted sum of their changes; soup: their mean; ties: trimmed, "
    "with one sign for each number; dare: randomly thinned, then summed.  [default: linear]",
)  # fmt: skip
@click.option(
    "--density", type=click.FloatRange(0, 1, min_open=True),
    help="For ties and dare: the share of numbers that is kept.  [default: 0.5]",
)  # fmt: skip
@click.option(
    "--rank", type=click.IntRange(1, 512),
    help="Rank of the combined adapter.  [default: the sum of the ranks, --max-lora-rank at most]",
)  # fmt: skip
@click.option(
    "--calibration-file", type=FILE,
    help="For awq: JSONL like the texts that the model will see: a file here, which is uploaded, or an uploaded "
    "file's id.  [default: the file on which the model was trained]",
)  # fmt: skip
@click.option("--calibration-rows", type=click.IntRange(1, 4096), help="Rows of it to use.  [default: 128]")
@click.option(
    "--group-size", type=click.Choice(["128", "64", "32", "largest"]),
    help="For awq: weights that share a scale. largest: the largest that fits the model.  [default: 128]",
)  # fmt: skip
@click.option(
    "--validation-file", type=FILE,
    help="Held-out JSONL, to measure the quality on.  [default: that of the model's job, else its training file]",
)  # fmt: skip
@click.option("--validation-rows", type=click.IntRange(1, 4096), help="Rows of it to use.  [default: 64]")
@click.option(
    "--max-kl", type=click.FloatRange(0, 100, min_open=True),
    help="The gate: largest KL divergence of the product from its source, in nats for each token.  [default: the "
    "service's --max-merged-kl, --max-awq-kl]",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Publish it even if it does not pass the gate, and record that.")
@click.option(
    "--suffix", help="Part of the model's name: ft:BASE:SUFFIX:ID.  [default: the source's, and the format]"
)
@click.option("--seed", type=click.IntRange(0), help="Seed of dare.  [default: 0]")
@click.option("--metadata", type=KeyValue(), multiple=True, help="Kept with the export; may be repeated.")
@click.option("--watch", is_flag=True, help="Show its progress until it has ended, as `exports watch` does.")
@on_service
def create(
    remote: Remote,
    *,
    models: tuple[tuple[str, float], ...],
    format: Literal["merged", "awq", "adapter"],
    combine: str | None,
    density: float | None,
    rank: int | None,
    calibration_file: str | Path | None,
    calibration_rows: int | None,
    group_size: str | None,
    validation_file: str | Path | None,
    validation_rows: int | None,
    max_kl: float | None,
    force: bool,
    suffix: str | None,
    seed: int | None,
    metadata: tuple[tuple[str, str], ...],
    watch: bool,
) -> int:
    """Start an export and print its id.

    It makes a new model from existing ones: an adapter merged into its base, a model quantized to 4 bits, or one
    adapter from several. The loss of quality is measured (`exports show`); above a bound the product is not published.
    """
    how = {
        name: value for name, value in (("method", combine), ("density", density), ("rank", rank)) if value
    }
    several = len(models) > 1
    _check(models, format, how)
    export = remote.client.exports.create(
        None if several else models[0][0],
        models=[{"model": model, "weight": weight} for model, weight in models] if several else None,
        format=format,
        combine=how or None,
        suffix=suffix,
        seed=seed,
        calibration_file=calibration_file,
        calibration_rows=calibration_rows,
        group_size=_group_size(group_size),
        validation_file=validation_file,
        validation_rows=validation_rows,
        max_kl=max_kl,
        force=force,
        metadata=dict(metadata) or None,
    )
    return print_created(remote, EXPORTS, export, watch)


def _check(models: tuple[tuple[str, float], ...], format: str, how: dict[str, Any]) -> None:
    """Check the combination of options before files are uploaded. Raises click.UsageError."""
    if len(models) > 1:
        return
    if how:
        raise click.UsageError("--combine, --density and --rank are for several adapters: repeat --model")
    if models[0][1] != 1:
        raise click.UsageError("a weight is for several adapters: repeat --model, or leave it out")
    if format == "adapter":
        raise click.UsageError("--format adapter makes one adapter of several: repeat --model")


def _group_size(given: str | None) -> int | Literal["largest"] | None:
    if given is None or given == "largest":
        return cast(Literal["largest"] | None, given)
    return int(given)
