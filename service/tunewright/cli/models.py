"""`tunewright models`: list, report, download and delete."""

from __future__ import annotations

from pathlib import Path

import click

from tunewright.cli.options import Commands, Remote, examples, force_option, on_service
from tunewright.cli.output import size

_NAME = "ft:tunewright-tiny:pirate:Zk3mP0aY"


@click.group(cls=Commands)
def models() -> None:
    """List models and report on them; download and delete tuned ones."""


@models.command(
    name="list", epilog=examples("tunewright models list", "tunewright models list --json | jq .data[].id")
)
@on_service
def list_models(remote: Remote) -> None:
    """List the bases, then tuned models, newest first."""
    found = list(remote.client.models.list())
    if remote.out.as_json:
        remote.out.page(found, False)
        return
    rows = []
    for model in found:
        more = model.model_extra or {}
        rows.append(
            (model.id, more.get("kind"), more.get("state"), more.get("base"), size(more.get("bytes")))
        )
    remote.out.table(["MODEL", "KIND", "STATE", "BASE", "SIZE"], rows)


_output_option = click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write to.  [default: the standard output]",
)


@models.command(epilog=examples(f"tunewright models report {_NAME} -o report.html"))
@click.argument("name", metavar="MODEL")
@_output_option
@on_service
def report(remote: Remote, name: str, output: Path | None) -> None:
    """Make a report on a model for a reviewer: a page of HTML in one file, without scripts.

    It has the options and losses of its training, its data, parity, evaluations, gates and lineage.
    """
    remote.out.document(name, remote.client.models.report(name), output)


@models.command(epilog=examples(f"tunewright models card {_NAME} -o README.md"))
@click.argument("name", metavar="MODEL")
@_output_option
@on_service
def card(remote: Remote, name: str, output: Path | None) -> None:
    """Make a model's card: the same as Markdown, with the front matter that hubs read."""
    remote.out.document(name, remote.client.models.card(name), output)


@models.command(epilog=examples(f"tunewright models delete {_NAME}"))
@click.argument("names", metavar="MODEL...", nargs=-1, required=True)
@force_option
@on_service
def delete(remote: Remote, names: tuple[str, ...], force: bool) -> None:
    """Delete tuned models. Adapters are unloaded first; bases cannot be deleted."""
    for name in names:
        deleted = remote.client.models.delete(name, force=force)
        if remote.out.as_json:
            remote.out.json(deleted)
        else:
            remote.out.line(f"{deleted.id} deleted")


@models.command(
    epilog=examples(
        f"tunewright models download {_NAME}",
        f"tunewright models download {_NAME} --output pirate.tar && tar xf pirate.tar",
    )
)
@click.argument("name", metavar="MODEL")
@click.option(
    "-o", "--output", metavar="PATH", default=".", help="File or folder to write to.  [default: this folder]"
)
@on_service
def download(remote: Remote, name: str, output: str) -> None:
    """Download a tuned model as a tar file: PEFT's folder of an adapter, transformers' of a full model."""
    path = remote.client.models.download(name, output)
    if remote.out.as_json:
        remote.out.json({"id": name, "path": str(path), "bytes": path.stat().st_size})
    else:
        remote.out.line(str(path))
