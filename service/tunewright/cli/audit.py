"""`tunewright audit`: who did what, as a list and as a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import click

from tunewright.cli.options import Commands, Remote, examples, limit_option, on_service
from tunewright.cli.output import page_size, when
from tunewright_client import AuditLog

_DAY = 86_400
_PAGE = 100


@click.group(cls=Commands)
def audit() -> None:
    """Show who did what: requests that may change something, refusals, and starts of jobs.

    The key of an admin shows all projects, and a project's key with the scope admin its project.
    """


def _time(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is no time: write 2026-01-31, or 2026-01-31T12:00:00+01:00"
        ) from error
    return int((at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp())


_projects = click.option(
    "--project", "projects", multiple=True, metavar="ID", help="Only of this project; repeat for more."
)
_types = click.option(
    "--type", "types", multiple=True, help="Only this type, such as api_key.created; repeat for more."
)
_actors = click.option(
    "--actor", "actors", multiple=True, metavar="ID", help="Only by the key with this id; repeat for more."
)


@audit.command(
    name="list",
    epilog=examples("tunewright audit list", "tunewright audit list --type api_key.created --days 30"),
)
@click.option("--days", type=click.IntRange(1, 3650), default=7, show_default=True, help="How far back.")
@_projects
@_types
@_actors
@limit_option(50)
@on_service
def list_logs(
    remote: Remote,
    days: int,
    projects: tuple[str, ...],
    types: tuple[str, ...],
    actors: tuple[str, ...],
    limit: int,
) -> None:
    """List what was done, the newest last."""
    found = remote.client.audit_logs.list(
        since=int(time.time()) - days * _DAY,
        project_ids=projects,
        event_types=types,
        actor_ids=actors,
        limit=page_size(limit, _PAGE),
    )
    remote.out.listing(
        found, limit, ["TIME", "TYPE", "STATUS", "ACTOR", "PROJECT", "PATH"], _row, oldest_first=True
    )


@audit.command(
    epilog=examples(
        "tunewright audit export --since 2026-01-01 --until 2026-02-01 -o january.jsonl",
        "tunewright audit export | jq 'select(.request.status == 200)'",
    )
)
@click.option(
    "--since", callback=_time, metavar="TIME", help="A day or time, UTC unless it says so.  [the first]"
)
@click.option("--until", callback=_time, metavar="TIME", help="Until before then.  [now]")
@_projects
@_types
@_actors
@click.option(
    "-o", "--output", metavar="PATH", default="-", help="File to write to; - is stdout.  [default: -]"
)
@on_service
def export(
    remote: Remote,
    since: int | None,
    until: int | None,
    projects: tuple[str, ...],
    types: tuple[str, ...],
    actors: tuple[str, ...],
    output: str,
) -> None:
    """Write the audit log as JSON Lines, the oldest first: an object as the API has it on each line."""
    found = remote.client.audit_logs.list(
        since=since,
        until=until if until is not None else int(time.time()) + 1,
        project_ids=projects,
        event_types=types,
        actor_ids=actors,
        oldest_first=True,
        limit=_PAGE,
    )
    count = 0
    with _opened(output) as file:
        for one in found:
            file.write(one.model_dump_json() + "\n")
            count += 1
    remote.out.note(f"{count} rows")


@contextmanager
def _opened(output: str) -> Iterator[TextIO]:
    if output == "-":
        yield sys.stdout
        return
    try:
        with Path(output).open("w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {error.strerror}") from error


def _row(one: AuditLog) -> tuple[object, ...]:
    actor = one.actor
    who = "-"
    if actor is not None and actor.session is not None:
        who = actor.session.user.email or actor.session.user.id
    elif actor is not None and actor.api_key is not None:
        who = actor.api_key.id
    asked = one.request
    return (
        when(one.effective_at),
        one.type,
        asked.status if asked is not None else "-",
        who,
        one.project.id if one.project is not None else "-",
        f"{asked.method} {asked.path}" if asked is not None else (one.resource.id if one.resource else "-"),
    )
