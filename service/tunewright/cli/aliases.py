"""`tunewright aliases`: set, list, show, roll back and delete aliases; their history and the answers of shadows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, get_args

import click

from tunewright.cli.limits import limit_options, limits_of, verdict_words
from tunewright.cli.options import Commands, P, R, Remote, Weighted, examples, limit_option, on_service
from tunewright.cli.output import page_size, when
from tunewright.metrics.names import Extract
from tunewright_client import (
    Alias,
    AliasGuard,
    AliasRequirement,
    AliasShadow,
    AliasTarget,
    AliasVersion,
    JudgedTarget,
    ShadowAnswer,
)

_OLD, _NEW = "ft:tunewright-tiny:pirate:Zk3mP0aY", "ft:tunewright-tiny:pirate:Qw8rT2yU"
_MOST_CHARACTERS = 60
"""Length at which an answer is cut in a table."""


@click.group(cls=Commands)
def aliases() -> None:
    """Give models stable names: switch them, try new models on a part of the traffic, roll back."""


def _user_option(function: Callable[P, R]) -> Callable[P, R]:
    return click.option("--user", metavar="NAME", help="Who makes the change, for the history.")(function)


def _wait_option(function: Callable[P, R]) -> Callable[P, R]:
    return click.option(
        "--wait/--no-wait",
        default=True,
        show_default=True,
        help="Load the models before requests are sent to them.",
    )(function)


@aliases.command(
    name="set",
    epilog=examples(
        f"tunewright aliases set support-bot {_OLD}",
        f"tunewright aliases set support-bot {_OLD}=9 {_NEW}=1 --max-error-rate 0.05 --max-p99 2",
        f"tunewright aliases set support-bot {_OLD} --shadow {_NEW}=0.1",
        f"tunewright aliases set support-bot {_OLD} --on file-Hn4bX9zK --min accuracy=0.8 --max-drop accuracy=0.02",
    ),
)
@click.argument("name", metavar="ALIAS")
@click.argument("targets", metavar="MODEL[=WEIGHT]...", nargs=-1, required=True, type=Weighted())
@click.option(
    "--shadow",
    metavar="MODEL[=SHARE]",
    type=Weighted(),
    help="A model that gets copies of the requests, or of a share of them (0 to 1); its answers are recorded.",
)
@click.option(
    "--max-error-rate",
    type=float,
    help="Roll back automatically when a new model fails more than this share of its requests.",
)
@click.option(
    "--max-p99",
    metavar="SECONDS",
    type=float,
    help="The same when the time to the first byte exceeds this, at the 99th percentile.",
)
@click.option(
    "--window", metavar="SECONDS", type=float, help="How long the guard counts requests.  [default: 600]"
)
@click.option("--min-requests", type=int, help="Requests before a model is judged.  [default: 20]")
@click.option(
    "--judge", metavar="MODEL",
    help="The same when this model, which compares the answers of a new model with those of --shadow, prefers too few.",
)  # fmt: skip
@click.option(
    "--min-win-rate", type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Of --judge: the smallest share of comparisons that a new model must win, ties counting half, such as 0.45.",
)  # fmt: skip
@click.option(
    "--min-samples",
    type=click.IntRange(30, 1000),
    help="Of --judge: comparisons before it counts.  [default: 50]",
)
@click.option(
    "--on",
    "file",
    metavar="FILE",
    help="From now on new models must keep the limits of --min, --max and --max-drop in an evaluation on this uploaded "
    "file; --max-drop compares with the present models.",
)
@limit_options
@click.option(
    "--extract",
    type=click.Choice(get_args(Extract)),
    help="The part of answers that such an evaluation compares.",
)
@click.option(
    "--no-forgetting", is_flag=True, help="From now on new models must not have forgotten too much."
)
@click.option("--require-nothing", is_flag=True, help="No longer require anything of new models.")
@click.option(
    "--force", is_flag=True, help="Set models that have not passed what ALIAS requires; the history says so."
)
@click.option(
    "--expected-version",
    type=int,
    metavar="N",
    help="Only if the alias has this version; 0: only if it does not exist.",
)
@_wait_option
@_user_option
@on_service
def set_alias(
    remote: Remote,
    name: str,
    targets: Sequence[tuple[str, float]],
    shadow: tuple[str, float] | None,
    max_error_rate: float | None,
    max_p99: float | None,
    window: float | None,
    min_requests: int | None,
    judge: str | None,
    min_win_rate: float | None,
    min_samples: int | None,
    file: str | None,
    least: dict[str, float],
    largest: dict[str, float],
    drops: dict[str, float],
    extract: str | None,
    no_forgetting: bool,
    require_nothing: bool,
    force: bool,
    expected_version: int | None,
    wait: bool,
    user: str | None,
) -> None:
    """Send requests to ALIAS to these models, by their weights (default: 1).

    This replaces the whole alias: without the options for a shadow or a guard, it has none. What it requires of new
    models stays until it is given anew, or --require-nothing.
    """
    limits = {
        "max_error_rate": max_error_rate,
        "max_p99_seconds": max_p99,
        "window_seconds": window,
        "min_requests": min_requests,
        "judge": _judge(judge, min_win_rate, min_samples),
    }
    guard = {key: value for key, value in limits.items() if value is not None}
    made = remote.client.aliases.set(
        name,
        [AliasTarget(model=model, weight=weight) for model, weight in targets],
        shadow=AliasShadow(model=shadow[0], share=shadow[1]) if shadow else None,
        guard=guard or None,
        require=False
        if require_nothing
        else _requirement(file, limits_of(least, largest, drops), extract, no_forgetting),
        force=force,
        expected_version=expected_version,
        wait=wait,
        user=user,
    )
    _print_alias(remote, made)


def _requirement(
    file: str | None, limits: list[dict[str, Any]], extract: str | None, no_forgetting: bool
) -> dict[str, Any] | None:
    """What the options require; None where they say nothing. Raises UsageError."""
    if file is None and not limits and extract is None:
        return {"no_forgetting": True} if no_forgetting else None
    if file is None or len(limits) != 1:
        raise click.UsageError("--on, and --min, --max or --max-drop of one metric, are given together")
    limit = dict(limits[0])
    evaluation = {"data": file, "metric": limit.pop("metric"), **({"extract": extract} if extract else {})}
    return {"evaluation": evaluation, **limit, **({"no_forgetting": True} if no_forgetting else {})}


@aliases.command(name="list", epilog=examples("tunewright aliases list"))
@limit_option(100)
@on_service
def list_aliases(remote: Remote, limit: int) -> None:
    """List the aliases, by name."""
    remote.out.listing(
        remote.client.aliases.list(limit=page_size(limit)),
        limit,
        ["ALIAS", "VERSION", "TARGETS", "SHADOW", "GUARD", "UPDATED"],
        lambda a: (a.id, a.version, _targets(a), _shadow(a), _guard(a.guard), when(a.updated_at)),
    )


@aliases.command(epilog=examples("tunewright aliases show support-bot"))
@click.argument("name", metavar="ALIAS")
@on_service
def show(remote: Remote, name: str) -> None:
    """Show one alias."""
    alias = remote.client.aliases.retrieve(name)
    if remote.out.as_json:
        remote.out.json(alias)
        return
    remote.out.fields(
        [
            ("alias", alias.id),
            ("version", alias.version),
            *[("target", _weighted(target.model, target.weight)) for target in alias.targets],
            ("shadow", _shadow(alias)),
            ("guard", _guard(alias.guard)),
            *[("judged", _judged(one)) for one in alias.judged or ()],
            ("requires", _requires(alias.require)),
            ("created", when(alias.created_at)),
            ("updated", when(alias.updated_at)),
        ]
    )


@aliases.command(epilog=examples("tunewright aliases history support-bot"))
@click.argument("name", metavar="ALIAS")
@limit_option(20)
@on_service
def history(remote: Remote, name: str, limit: int) -> None:
    """List an alias's versions, newest first: their targets, who made the change and why."""

    def row(version: AliasVersion) -> tuple[object, ...]:
        at = when(version.created_at)
        return version.version, at, version.who, _targets(version) or None, _shadow(version), version.why

    found = remote.client.aliases.history(name, limit=page_size(limit))
    remote.out.listing(found, limit, ["VERSION", "TIME", "WHO", "TARGETS", "SHADOW", "WHY"], row)


@aliases.command(
    epilog=examples(
        "tunewright aliases rollback support-bot", "tunewright aliases rollback support-bot --to 3"
    )
)
@click.argument("name", metavar="ALIAS")
@click.option(
    "--to", "version", metavar="VERSION", type=int, help="[default: the one before the current one]"
)
@_wait_option
@_user_option
@on_service
def rollback(remote: Remote, name: str, version: int | None, wait: bool, user: str | None) -> None:
    """Restore an earlier version of an alias. A second rollback goes further back, and does not undo the first."""
    _print_alias(remote, remote.client.aliases.rollback(name, version, wait=wait, user=user))


@aliases.command(epilog=examples("tunewright aliases delete support-bot"))
@click.argument("names", metavar="ALIAS...", nargs=-1, required=True)
@_user_option
@on_service
def delete(remote: Remote, names: tuple[str, ...], user: str | None) -> None:
    """Delete aliases. Their history stays."""
    for name in names:
        deleted = remote.client.aliases.delete(name, user=user)
        if remote.out.as_json:
            remote.out.json(deleted)
        else:
            remote.out.line(f"{deleted.id} deleted")


@aliases.command(epilog=examples("tunewright aliases shadow support-bot --limit 1000 --json > answers.json"))
@click.argument("name", metavar="ALIAS")
@limit_option(20)
@on_service
def shadow(remote: Remote, name: str, limit: int) -> None:
    """List the answers of an alias's shadow, newest first; --json has the whole requests and answers."""

    def row(answer: ShadowAnswer) -> tuple[object, ...]:
        text = answer.answer if isinstance(answer.answer, str) else json.dumps(answer.answer)
        short = text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "..."
        seconds = f"{answer.seconds:.2f} s"
        return when(answer.created_at), answer.status, seconds, answer.model, answer.answered_by, short

    found = remote.client.aliases.shadow_answers(name, limit=page_size(limit, most=100))
    remote.out.listing(found, limit, ["TIME", "STATUS", "TOOK", "SHADOW", "ANSWERED BY", "ANSWER"], row)


def _print_alias(remote: Remote, alias: Alias) -> None:
    if remote.out.as_json:
        remote.out.json(alias)
    else:
        remote.out.line(f"{alias.id} version {alias.version}: {_targets(alias)}")


def _targets(of: Alias | AliasVersion) -> str:
    """The targets in the form that `set` takes."""
    return " ".join(_weighted(target.model, target.weight) for target in of.targets)


def _shadow(of: Alias | AliasVersion) -> str | None:
    return _weighted(of.shadow.model, of.shadow.share) if of.shadow else None


def _weighted(model: str, number: float) -> str:
    return model if number == 1 else f"{model}={number:g}"


def _requires(of: AliasRequirement | None) -> str | None:
    if of is None:
        return None
    parts = []
    if of.evaluation is not None:
        limits = [("min", of.min), ("max", of.max), ("max drop", of.max_drop)]
        shown = ", ".join(f"{name} {limit:g}" for name, limit in limits if limit is not None)
        parts.append(f"{of.evaluation.metric} on {of.evaluation.data}: {shown}")
    if of.no_forgetting:
        parts.append("no forgetting")
    return "; ".join(parts)


def _judge(model: str | None, rate: float | None, samples: int | None) -> dict[str, Any] | None:
    if model is None:
        if rate is not None or samples is not None:
            raise click.UsageError("--min-win-rate and --min-samples are of a --judge.")
        return None
    if rate is None:
        raise click.UsageError("--judge needs a --min-win-rate, such as 0.45.")
    asked = {"model": model, "min_win_rate": rate, "min_samples": samples}
    return {name: value for name, value in asked.items() if value is not None}


def _judged(one: JudgedTarget) -> str:
    numbers = f"{one.wins} wins, {one.ties} ties, {one.losses} losses against {one.against}"
    rate = f", win rate {one.win_rate:.1%}" if one.win_rate is not None else ""
    interval = f" ({one.low:.1%} to {one.high:.1%})" if one.low is not None and one.high is not None else ""
    return f"{one.model}: {verdict_words(one.verdict)}; {numbers}{rate}{interval}"


def _guard(guard: AliasGuard | None) -> str | None:
    if guard is None:
        return None
    limits = [
        f"errors {guard.max_error_rate:g}" if guard.max_error_rate is not None else None,
        f"p99 {guard.max_p99_seconds:g} s" if guard.max_p99_seconds is not None else None,
        f"win rate {guard.judge.min_win_rate:g} by {guard.judge.model}" if guard.judge is not None else None,
        f"window {guard.window_seconds:g} s" if guard.window_seconds is not None else None,
        f"requests {guard.min_requests}" if guard.min_requests is not None else None,
    ]
    return ", ".join(limit for limit in limits if limit)
