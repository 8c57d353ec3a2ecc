"""Commands of `tunewright evals` by which people rate pairs of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from tunewright.cli.job_commands import EVALUATIONS
from tunewright.cli.options import Remote, examples, on_service
from tunewright.cli.output import measured
from tunewright_client import Ratings


@click.command(epilog=examples(EVALUATIONS.example_of("pairs", "--format csv -o pairs.csv")))
@click.argument("evaluation_id")
@click.option("--against", help="Only the pairs with this model.")
@click.option("--rows", type=click.IntRange(1), help="How many. Default: all.")
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
    help="File to write to.  [default: the standard output]",
)  # fmt: skip
@on_service
def pairs(
    remote: Remote,
    evaluation_id: str,
    against: str | None,
    rows: int | None,
    form: Literal["jsonl", "csv"],
    output: Path | None,
) -> None:
    """Export pairs of answers for people to rate: in random order, and without the names of the models.

    They fill the column `choice` with a, b or tie; `evals rate` reads it.
    """
    text = remote.client.evaluations.pairs(evaluation_id, against=against, rows=rows, format=form)
    remote.out.document(evaluation_id, text, output)


@click.command(epilog=examples(EVALUATIONS.example_of("rate", "pairs.csv --rater ann")))
@click.argument("evaluation_id")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--rater", required=True, metavar="NAME", help="Who has chosen.")
@on_service
def rate(remote: Remote, evaluation_id: str, file: Path, rater: str) -> None:
    """Store what a person has chosen in a file of `evals pairs`, and show what all have chosen."""
    try:
        found = remote.client.evaluations.rate(evaluation_id, rater, file)
    except ValueError as error:
        raise click.ClickException(f"{file}: {error}.") from error
    _ratings(remote, found)


@click.command(epilog=examples(EVALUATIONS.example_of("ratings")))
@click.argument("evaluation_id")
@on_service
def ratings(remote: Remote, evaluation_id: str) -> None:
    """Show what people have chosen: how often the evaluated model was preferred, and how they agree."""
    _ratings(remote, remote.client.evaluations.ratings(evaluation_id))


def _ratings(remote: Remote, found: Ratings) -> None:
    if remote.out.as_json:
        remote.out.json(found)
        return
    remote.out.table(
        ["AGAINST", "ROWS", "RATINGS", "WINS", "TIES", "LOSSES", "WIN RATE", "P", "CONCLUSION"],
        [
            (one.against, one.rows, one.ratings, one.wins, one.ties, one.losses,
             f"{measured(one.win_rate)} ({measured(one.low)} to {measured(one.high)})", f"{one.p_value:.4f}",
             one.conclusion.replace("_", " "))
            for one in found.models
        ],
    )  # fmt: skip
    for one in found.agreement:
        remote.out.line(
            f"{one.first} and {one.second} agree on {one.agreement:.1%} of {one.rows} pairs: kappa "
            f"{measured(one.kappa)}"
        )


RATING = (pairs, rate, ratings)
