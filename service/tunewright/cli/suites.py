"""Options of `tunewright evals create` for suites."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, get_args

import click

from tunewright.metrics.names import SuiteName

QUICK_ROWS = 200
"""Questions of a quick look; its intervals say how much they tell."""


def suite_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--suite`, `--shots`, `--samples` and `--quick`; the command gets `suite`, the field of the request, and
    `quick`."""

    @click.option(
        "--suite", type=click.Choice(get_args(SuiteName)),
        help="In the place of --file: a suite that the operator provides, by which forgetting is measured.",
    )  # fmt: skip
    @click.option(
        "--shots", type=click.IntRange(0, 25),
        help="Examples before each question of the suite. Default: 5, of humaneval none.",
    )  # fmt: skip
    @click.option(
        "--samples", type=click.IntRange(1, 200), help="Programs for each question of humaneval. Default: 1."
    )
    @click.option("--quick", is_flag=True, help=f"Draw {QUICK_ROWS} rows, unless --rows says how many.")
    @functools.wraps(command)
    def with_suite(
        *arguments: Any,
        file: Any,
        suite: str | None,
        shots: int | None,
        samples: int | None,
        **others: Any,
    ) -> Any:
        if (file is None) == (suite is None):
            raise click.UsageError("Give either --file or --suite.")
        if suite is None and (shots is not None or samples is not None):
            raise click.UsageError("--shots and --samples are of a --suite.")
        asked = {"name": suite, "shots": shots, "samples": samples}
        found = {key: value for key, value in asked.items() if value is not None} if suite else None
        return command(*arguments, file=file, suite=found, **others)

    return with_suite
