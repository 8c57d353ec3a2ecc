"""`tunewright aliases`: set, list, show, roll back and delete aliases; their history, and what shadows answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import click

from tunewright.cli.options import Commands, P, R, Remote, Weighted, examples, limit_option, on_service
from tunewright.cli.output import page_size, when
from tunewright_client import Alias, AliasGuard, AliasShadow, AliasTarget, AliasVersion, ShadowAnswer

_OLD, _NEW = "ft:tunewright-tiny:pirate:Zk3mP0aY", "ft:tunewright-tiny:pirate:Qw8rT2yU"
_SHORT = 60


@click.group(cls=Commands)
def aliases() -> None:
    """Give models stable names: flip them, try new models on a part of the traffic, roll back."""


def _user_option(function: Callable[P, R]) -> Callable[P, R]:
    return click.option("--user", metavar="NAME", help="Who does it, for the history.")(function)


def _wait_option(function: Callable[P, R]) -> Callable[P, R]:
    return click.option(
        "--wait/--no-wait",
        default=True,
        show_default=True,
        help="Load the models before they are sent requests.",
    )(function)


@aliases.command(
    name="set",
    epilog=examples(
        f"tunewright aliases set support-bot {_OLD}",
        f"tunewright aliases set support-bot {_OLD}=9 {_NEW}=1 --max-error-rate 0.05 --max-p99 2",
        f"tunewright aliases set support-bot {_OLD} --shadow {_NEW}=0.1",
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
    help="Roll back by itself when a new model fails more than this share of its requests.",
)
@click.option(
    "--max-p99",
    metavar="SECONDS",
    type=float,
    help="The same when it begins to answer later, at the 99th percentile.",
)
@click.option("--window", metavar="SECONDS", type=float, help="How long to look.  [default: 600]")
@click.option("--min-requests", type=int, help="How many requests it must have had.  [default: 20]")
@click.option(
    "--expected-version",
    type=int,
    metavar="N",
    help="Only if it is at this version; 0: only if there is none.",
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
    expected_version: int | None,
    wait: bool,
    user: str | None,
) -> None:
    """Have requests to ALIAS answered by these models, by their weights (1 where none is given).

    All that the alias is to be is given at once: a shadow or a guard that is left out is none.
    """
    limits = {
        "max_error_rate": max_error_rate,
        "max_p99_seconds": max_p99,
        "window_seconds": window,
        "min_requests": min_requests,
    }
    guard = {key: value for key, value in limits.items() if value is not None}
    made = remote.client.aliases.set(
        name,
        [AliasTarget(model=model, weight=weight) for model, weight in targets],
        shadow=AliasShadow(model=shadow[0], share=shadow[1]) if shadow else None,
        guard=guard or None,
        expected_version=expected_version,
        wait=wait,
        user=user,
    )
    _report(remote, made)


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
            ("created", when(alias.created_at)),
            ("updated", when(alias.updated_at)),
        ]
    )


@aliases.command(epilog=examples("tunewright aliases history support-bot"))
@click.argument("name", metavar="ALIAS")
@limit_option(20)
@on_service
def history(remote: Remote, name: str, limit: int) -> None:
    """List an alias's versions, newest first: what it was, who changed it and why."""

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
@click.option("--to", "version", metavar="VERSION", type=int, help="[default: what it was before]")
@_wait_option
@_user_option
@on_service
def rollback(remote: Remote, name: str, version: int | None, wait: bool, user: str | None) -> None:
    """Make an alias what it was before. What was rolled back from does not come back by rolling back again."""
    _report(remote, remote.client.aliases.rollback(name, version, wait=wait, user=user))


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
    """List what an alias's shadow answered, newest first; --json has requests and answers whole."""

    def row(answer: ShadowAnswer) -> tuple[object, ...]:
        text = answer.answer if isinstance(answer.answer, str) else json.dumps(answer.answer)
        short = text if len(text) <= _SHORT else text[:_SHORT] + "..."
        seconds = f"{answer.seconds:.2f} s"
        return when(answer.created_at), answer.status, seconds, answer.model, answer.answered_by, short

    found = remote.client.aliases.shadow_answers(name, limit=page_size(limit, most=100))
    remote.out.listing(found, limit, ["TIME", "STATUS", "TOOK", "SHADOW", "ANSWERED BY", "ANSWER"], row)


def _report(remote: Remote, alias: Alias) -> None:
    if remote.out.as_json:
        remote.out.json(alias)
    else:
        remote.out.line(f"{alias.id} version {alias.version}: {_targets(alias)}")


def _targets(of: Alias | AliasVersion) -> str:
    """As they are given to `set`."""
    return " ".join(_weighted(target.model, target.weight) for target in of.targets)


def _shadow(of: Alias | AliasVersion) -> str | None:
    return _weighted(of.shadow.model, of.shadow.share) if of.shadow else None


def _weighted(model: str, number: float) -> str:
    return model if number == 1 else f"{model}={number:g}"


def _guard(guard: AliasGuard | None) -> str | None:
    if guard is None:
        return None
    limits = [
        f"errors {guard.max_error_rate:g}" if guard.max_error_rate is not None else None,
        f"p99 {guard.max_p99_seconds:g} s" if guard.max_p99_seconds is not None else None,
        f"window {guard.window_seconds:g} s" if guard.window_seconds is not None else None,
        f"requests {guard.min_requests}" if guard.min_requests is not None else None,
    ]
    return ", ".join(limit for limit in limits if limit)
