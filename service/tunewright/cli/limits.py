"""Options for limits of metrics, which evaluations and aliases have, and verdicts in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from tunewright.cli.options import KeyValue, P, R
from tunewright.metrics.names import METRICS
from tunewright.metrics.verdicts import Verdict, words


def limit_options(function: Callable[P, R]) -> Callable[P, R]:
    """Add --min, --max and --max-drop, as the dictionaries `least`, `largest` and `drops`."""
    for option, parameter, about in (
        (
            "--max-drop",
            "drops",
            "By how much a metric may be worse than that of the models it is compared with.",
        ),
        ("--max", "largest", "The largest figure of a metric of which less is better: perplexity."),
        ("--min", "least", "The smallest figure of a metric, such as accuracy=0.8; may be repeated."),
    ):
        function = click.option(
            option,
            parameter,
            type=KeyValue(),
            multiple=True,
            metavar="METRIC=NUMBER",
            callback=numbers,
            help=about,
        )(function)
    return function


def numbers(_: click.Context, __: click.Parameter, value: tuple[tuple[str, str], ...]) -> dict[str, float]:
    """METRIC=NUMBER, repeated, as a dictionary."""
    found: dict[str, float] = {}
    for name, text in value:
        if name not in METRICS:
            raise click.BadParameter(f"{name} is none of {', '.join(METRICS)}")
        try:
            found[name] = float(text)
        except ValueError as error:
            raise click.BadParameter(f"{text!r} of {name} is no number") from error
    return found


def limits_of(
    least: dict[str, float], largest: dict[str, float], drops: dict[str, float]
) -> list[dict[str, Any]]:
    """The limits of each metric, as a request has them."""
    given = {"min": least, "max": largest, "max_drop": drops}
    names = dict.fromkeys([*least, *largest, *drops])
    return [
        {"metric": name, **{limit: of[name] for limit, of in given.items() if name in of}} for name in names
    ]


def verdict_words(verdict: str) -> str:
    """A verdict as people read it; one of a newer service as it is."""
    return words(Verdict(verdict)) if verdict in list(Verdict) else verdict
