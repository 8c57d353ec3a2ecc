"""`tunewright projects`: the tenants of a service."""

from __future__ import annotations

import click

from tunewright.cli.limiting import limits_argument, show_limits
from tunewright.cli.options import Commands, Remote, examples, limit_option, on_service
from tunewright.cli.output import page_size, when
from tunewright_client import Project

_ID = "proj-3mGkU1dYvA5nT8sQe0xWzLbH"


@click.group(cls=Commands)
def projects() -> None:
    """Make and list projects: what belongs to one is not found by the keys of another.

    These commands need the key of an admin.
    """


@projects.command(
    epilog=examples(
        "tunewright projects create 'search team'", "tunewright projects create trial --base small-base"
    )
)
@click.argument("name")
@click.option(
    "--base", "bases", multiple=True, help="A base or deployable that it may use; repeat for more. [all]"
)
@on_service
def create(remote: Remote, name: str, bases: tuple[str, ...]) -> None:
    """Make a project with nothing in it. Make keys for it with `tunewright keys create --project ID`."""
    _show(remote, remote.client.projects.create(name, bases=bases or None))


@projects.command(name="list", epilog=examples("tunewright projects list"))
@click.option("--archived", is_flag=True, help="Also those that are archived.")
@limit_option(100)
@on_service
def list_projects(remote: Remote, archived: bool, limit: int) -> None:
    """List the projects, newest first."""
    remote.out.listing(
        remote.client.projects.list(archived=archived, limit=page_size(limit, 100)),
        limit,
        ["NAME", "STATUS", "CREATED", "ID"],
        lambda project: (project.name, project.status, when(project.created_at), project.id),
    )


@projects.command(epilog=examples(f"tunewright projects rename {_ID} search"))
@click.argument("project", metavar="ID")
@click.argument("name")
@on_service
def rename(remote: Remote, project: str, name: str) -> None:
    """Give a project another name. Its id stays."""
    _show(remote, remote.client.projects.rename(project, name))


@projects.command(
    epilog=examples(
        f"tunewright projects limit {_ID} requests_per_minute=600 running_jobs=2",
        f"tunewright projects limit {_ID} stored_bytes=100GB adapters=none",
    )
)
@click.argument("project", metavar="ID")
@limits_argument
@on_service
def limit(remote: Remote, project: str, limits: dict[str, int | None]) -> None:
    """Set what a project may have at most; none takes a limit away, and without any the limits are shown.

    Limits: requests_per_minute, tokens_per_minute, concurrent_requests, gpu_hours_per_month, queued_jobs, running_jobs,
    stored_bytes and adapters.
    """
    client = remote.client.projects
    show_limits(remote, client.limit(project, limits) if limits else client.retrieve(project))


@projects.command(
    epilog=examples(f"tunewright projects bases {_ID} small-base", f"tunewright projects bases {_ID} --all")
)
@click.argument("project", metavar="ID")
@click.argument("names", metavar="[BASE]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Let it use all again.")
@on_service
def bases(remote: Remote, project: str, names: tuple[str, ...], everything: bool) -> None:
    """Set the bases and deployables that a project may use; without any, show them.

    It finds no other from the next request on. Jobs and deployments that were created go on.
    """
    if names and everything:
        raise click.UsageError("Name bases, or give --all.")
    client = remote.client.projects
    changes = names or everything
    found = client.limit_bases(project, names or None) if changes else client.retrieve(project)
    if remote.out.as_json:
        remote.out.json(found)
    else:
        for base in found.bases or ["all"]:
            remote.out.line(base)


@projects.command(epilog=examples(f"tunewright projects archive {_ID}"))
@click.argument("project", metavar="ID")
@on_service
def archive(remote: Remote, project: str) -> None:
    """Refuse the keys of a project from now on. What belongs to it stays."""
    _show(remote, remote.client.projects.archive(project))


def _show(remote: Remote, project: Project) -> None:
    if remote.out.as_json:
        remote.out.json(project)
    else:
        remote.out.line(f"{project.id} {project.name}: {project.status}")
