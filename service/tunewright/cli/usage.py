"""`tunewright usage`: tokens, time of GPUs and costs by day or hour."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from tunewright.cli.options import Commands, P, R, Remote, examples, on_service
from tunewright_client import CostBucket, UsageBucket

_DAY, _HOUR = 86_400, 3600
_FIELDS = {
    "project": "project_id",
    "key": "api_key_id",
    "model": "model",
    "batch": "batch",
    "item": "line_item",
}
"""What --by calls the fields of a result."""


@click.group(cls=Commands)
def usage() -> None:
    """Show what was used: tokens of generations, time of GPUs of jobs, and what that costs.

    The key of an admin shows all projects, and a project's key with the scope admin its project. Days are those of UTC.
    """


def _named(option: str, about: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    return click.option(
        f"--{option}", f"{option}s", multiple=True, metavar="ID", help=f"{about}; repeat for more."
    )


_projects = _named("project", "Only this project")
_keys = _named("key", "Only this key, none for requests without one")
_models = _named("model", "Only this model")
_days = click.option(
    "--days", type=click.IntRange(1, 180), default=7, show_default=True, help="How many, until now."
)
_hours = click.option(
    "--hours", type=click.IntRange(1, 168), help="So many hours, one by one, instead of days."
)


def _by(default: str, *names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    return click.option(
        "--by",
        type=click.Choice(names),
        multiple=True,
        default=[default],
        show_default=True,
        help="What to tell apart; repeat for more.",
    )


@usage.command(
    epilog=examples("tunewright usage tokens", "tunewright usage tokens --by project --by model --hours 24")
)
@_by("model", "project", "key", "model", "batch")
@_days
@_hours
@_projects
@_keys
@_models
@on_service
def tokens(
    remote: Remote,
    by: tuple[str, ...],
    days: int,
    hours: int | None,
    projects: tuple[str, ...],
    keys: tuple[str, ...],
    models: tuple[str, ...],
) -> None:
    """Show the requests and tokens of chats, completions and responses."""
    found = remote.client.usage.completions(
        start=_start(days, hours),
        bucket_width="1h" if hours else "1d",
        group_by=[_FIELDS[name] for name in by],
        project_ids=projects,
        api_key_ids=keys,
        models=models,
    )
    _show(
        remote,
        found,
        by,
        ["REQUESTS", "TOKENS IN", "TOKENS OUT"],
        lambda one: (one.num_model_requests, one.input_tokens, one.output_tokens),
    )


@usage.command(epilog=examples("tunewright usage gpus --by project", "tunewright usage gpus --days 30"))
@_by("model", "project", "key", "model")
@_days
@_hours
@_projects
@_keys
@_models
@on_service
def gpus(
    remote: Remote,
    by: tuple[str, ...],
    days: int,
    hours: int | None,
    projects: tuple[str, ...],
    keys: tuple[str, ...],
    models: tuple[str, ...],
) -> None:
    """Show the hours for which jobs had GPUs, by the base of the jobs."""
    found = remote.client.usage.gpu_seconds(
        start=_start(days, hours),
        bucket_width="1h" if hours else "1d",
        group_by=[_FIELDS[name] for name in by],
        project_ids=projects,
        api_key_ids=keys,
        models=models,
    )
    _show(remote, found, by, ["GPU HOURS"], lambda one: (f"{(one.gpu_seconds or 0.0) / _HOUR:.3f}",))


@usage.command(epilog=examples("tunewright usage costs", "tunewright usage costs --by project --days 30"))
@_by("item", "project", "key", "item")
@_days
@_projects
@_keys
@on_service
def costs(
    remote: Remote, by: tuple[str, ...], days: int, projects: tuple[str, ...], keys: tuple[str, ...]
) -> None:
    """Show costs, by the prices with which the service was started (--price, --price-per-hour)."""
    found = remote.client.usage.costs(
        start=_start(days, None),
        group_by=[_FIELDS[name] for name in by],
        project_ids=projects,
        api_key_ids=keys,
    )
    _show(
        remote,
        found,
        by,
        ["QUANTITY", "COST"],
        lambda one: (
            None if one.quantity is None else f"{one.quantity:.10g} {one.quantity_unit}",
            None if one.amount is None else f"{one.amount.value:.4f} {one.amount.currency.upper()}",
        ),
    )


def _start(days: int, hours: int | None) -> int:
    width = _HOUR if hours else _DAY
    return int(time.time()) // width * width - ((hours or days) - 1) * width


def _show(
    remote: Remote,
    buckets: Sequence[UsageBucket] | Sequence[CostBucket],
    by: Sequence[str],
    columns: Sequence[str],
    numbers: Callable[[Any], Iterable[object]],
) -> None:
    if remote.out.as_json:
        remote.out.json({"data": [bucket.model_dump(mode="json") for bucket in buckets]})
        return
    rows = [
        (
            time.strftime("%Y-%m-%d %H:%M", time.gmtime(bucket.start_time)),
            *(getattr(one, _FIELDS[name]) for name in by),
            *numbers(one),
        )
        for bucket in buckets
        for one in bucket.results
    ]
    remote.out.table(["FROM (UTC)", *(name.upper() for name in by), *columns], rows)
