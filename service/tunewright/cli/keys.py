"""`tunewright keys`: API keys of projects and of admins."""

from __future__ import annotations

import click

from tunewright.cli.limiting import limits_argument, show_limits
from tunewright.cli.options import Commands, Remote, examples, limit_option, on_service
from tunewright.cli.output import page_size, when
from tunewright_client import AdminApiKey, ApiKey, NewAdminApiKey, NewApiKey

_DAY = 86_400
_ID, _PROJECT = "key-8fQw2LrBn6ZtX0cVyJ4hKdPa", "proj-3mGkU1dYvA5nT8sQe0xWzLbH"
_SCOPES = ("read", "infer", "train", "admin")
project_option = click.option(
    "--project", default="default", show_default=True, metavar="ID", help="The project whose key it is."
)
admin_option = click.option("--admin", is_flag=True, help="A key of an admin, for all projects, instead.")


@click.group(cls=Commands)
def keys() -> None:
    """Make, list, rotate and revoke API keys.

    A project's key finds only what belongs to the project. As soon as there is a key, the service asks for one.
    """


@keys.command(
    epilog=examples(
        "tunewright keys create operations --admin",
        f"tunewright keys create indexer --project {_PROJECT} --scope read --scope infer --days 90",
    )
)
@click.argument("name")
@project_option
@admin_option
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(_SCOPES),
    multiple=True,
    help="Repeatable.  [default: read, infer, train]",
)
@click.option(
    "--days", type=click.IntRange(1, 3650), metavar="N", help="Days until it expires.  [default: never]"
)
@on_service
def create(
    remote: Remote, name: str, project: str, admin: bool, scopes: tuple[str, ...], days: int | None
) -> None:
    """Make a key and print it: it is shown this once.

    Scopes: read is everything that is looked at, infer generations, train everything that is created, changed or
    deleted, and admin the keys of the project.
    """
    seconds = days * _DAY if days is not None else None
    if admin:
        if scopes:
            raise click.UsageError("An admin's key has all scopes: leave --scope out.")
        _show_new(remote, remote.client.admin_api_keys.create(name, expires_in=seconds))
    else:
        made = remote.client.api_keys.create(project, name, scopes=scopes or None, expires_in=seconds)
        _show_new(remote, made)


@keys.command(
    name="list", epilog=examples(f"tunewright keys list --project {_PROJECT}", "tunewright keys list --admin")
)
@project_option
@admin_option
@limit_option(100)
@on_service
def list_keys(remote: Remote, project: str, admin: bool, limit: int) -> None:
    """List the keys that were not revoked, newest first."""
    columns = ["NAME", "KEY", "SCOPES", "CREATED", "EXPIRES", "LAST USED", "ID"]
    size = page_size(limit, 100)
    if admin:
        remote.out.listing(remote.client.admin_api_keys.list(limit=size), limit, columns, _row)
    else:
        remote.out.listing(remote.client.api_keys.list(project, limit=size), limit, columns, _row)


@keys.command(epilog=examples(f"tunewright keys limit {_ID} --project {_PROJECT} requests_per_minute=60"))
@click.argument("key", metavar="ID")
@project_option
@limits_argument
@on_service
def limit(remote: Remote, key: str, project: str, limits: dict[str, int | None]) -> None:
    """Set rates of a key, beside those of its project; none takes one away, and without any they are shown.

    Limits: requests_per_minute, tokens_per_minute, concurrent_requests, gpu_hours_per_month.
    """
    client = remote.client.api_keys
    show_limits(remote, client.limit(project, key, limits) if limits else client.retrieve(project, key))


@keys.command(epilog=examples(f"tunewright keys rotate {_ID} --overlap 3600"))
@click.argument("key", metavar="ID")
@project_option
@admin_option
@click.option(
    "--overlap",
    type=click.IntRange(0, 30 * _DAY),
    default=0,
    show_default=True,
    metavar="SECONDS",
    help="For how long the old key is still taken.",
)
@on_service
def rotate(remote: Remote, key: str, project: str, admin: bool, overlap: int) -> None:
    """Make a key in the place of another one, with its name and scopes, and print it: it is shown this once."""
    if admin:
        _show_new(remote, remote.client.admin_api_keys.rotate(key, overlap=overlap))
    else:
        _show_new(remote, remote.client.api_keys.rotate(project, key, overlap=overlap))


@keys.command(epilog=examples(f"tunewright keys revoke {_ID}"))
@click.argument("keys", metavar="ID...", nargs=-1, required=True)
@project_option
@admin_option
@on_service
def revoke(remote: Remote, keys: tuple[str, ...], project: str, admin: bool) -> None:
    """Refuse keys from the next request on."""
    for key in keys:
        client = remote.client
        deleted = client.admin_api_keys.revoke(key) if admin else client.api_keys.revoke(project, key)
        if remote.out.as_json:
            remote.out.json(deleted)
        else:
            remote.out.line(f"{deleted.id} revoked")


def _show_new(remote: Remote, made: NewApiKey | NewAdminApiKey) -> None:
    if remote.out.as_json:
        remote.out.json(made)
        return
    remote.out.fields(
        [
            ("id", made.id),
            ("name", made.name),
            ("project", made.project_id if isinstance(made, NewApiKey) else None),
            ("scopes", _scopes(made)),
            ("expires", when(made.expires_at)),
            ("key", made.value),
        ]
    )
    remote.out.note("Keep the key now: it is not shown again.")


def _row(key: ApiKey | AdminApiKey) -> tuple[object, ...]:
    return (
        key.name,
        key.redacted_value,
        _scopes(key),
        when(key.created_at),
        when(key.expires_at) or "never",
        when(key.last_used_at) or "-",
        key.id,
    )


def _scopes(key: ApiKey | AdminApiKey) -> str:
    return ", ".join(key.scopes) if isinstance(key, ApiKey) else "all, in all projects"
