"""`tunewright models` and `tunewright adapters`."""

from __future__ import annotations

import click

from tunewright.cli.options import Commands, Remote, examples, limit_option, on_service
from tunewright.cli.output import page_size, size, take, when
from tunewright_client import Adapter

_NAME = "ft:tunewright-tiny:pirate:Zk3mP0aY"


@click.group(cls=Commands)
def models() -> None:
    """List models; download and delete tuned ones."""


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


@models.command(epilog=examples(f"tunewright models delete {_NAME}"))
@click.argument("names", metavar="MODEL...", nargs=-1, required=True)
@on_service
def delete(remote: Remote, names: tuple[str, ...]) -> None:
    """Delete tuned models. Adapters are unloaded first; bases cannot be deleted."""
    for name in names:
        deleted = remote.client.models.delete(name)
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


@click.group(cls=Commands)
def adapters() -> None:
    """See which adapters are loaded; load and unload them."""


@adapters.command(name="list", epilog=examples("tunewright adapters list"))
@limit_option(100)
@on_service
def list_adapters(remote: Remote, limit: int) -> None:
    """List the adapters, checkpoints among them, newest first."""
    found, more = take(remote.client.adapters.list(limit=page_size(limit)), limit)
    if remote.out.as_json:
        remote.out.page(found, more)
        return
    remote.out.table(
        ["MODEL", "STATE", "RANK", "SIZE", "CREATED", "ERROR"],
        [(a.model, a.state, a.rank, size(a.bytes), when(a.created_at), a.error) for a in found],
    )
    remote.out.note_more(more)


@adapters.command(epilog=examples(f"tunewright adapters show {_NAME}"))
@click.argument("name", metavar="MODEL|ID")
@on_service
def show(remote: Remote, name: str) -> None:
    """Show one adapter, by its model's name or its id."""
    adapter = remote.client.adapters.retrieve(name)
    if remote.out.as_json:
        remote.out.json(adapter)
        return
    modules = adapter.target_modules
    remote.out.fields(
        [
            ("model", adapter.model),
            ("id", adapter.id),
            ("state", adapter.state),
            ("wanted", adapter.desired),
            ("error", adapter.error),
            ("base", adapter.base),
            ("job", adapter.job_id),
            ("method", adapter.method),
            ("rank", adapter.rank),
            ("alpha", adapter.alpha),
            ("target modules", ", ".join(modules) if isinstance(modules, list) else modules),
            ("size", size(adapter.bytes)),
            ("sha256", adapter.sha256),
            ("created", when(adapter.created_at)),
        ]
    )


@adapters.command(epilog=examples(f"tunewright adapters load {_NAME}:ckpt-step-8"))
@click.argument("names", metavar="MODEL|ID...", nargs=-1, required=True)
@on_service
def load(remote: Remote, names: tuple[str, ...]) -> int:
    """Load adapters into their base's engine, now and after every restart."""
    return max(_report(remote, remote.client.adapters.load(name)) for name in names)


@adapters.command(epilog=examples(f"tunewright adapters unload {_NAME}"))
@click.argument("names", metavar="MODEL|ID...", nargs=-1, required=True)
@on_service
def unload(remote: Remote, names: tuple[str, ...]) -> int:
    """Unload adapters. Requests that run with them finish first."""
    return max(_report(remote, remote.client.adapters.unload(name)) for name in names)


def _report(remote: Remote, adapter: Adapter) -> int:
    if remote.out.as_json:
        remote.out.json(adapter)
    else:
        remote.out.line(f"{adapter.model} {adapter.state}" + (f": {adapter.error}" if adapter.error else ""))
    return 1 if adapter.state == "failed" else 0
