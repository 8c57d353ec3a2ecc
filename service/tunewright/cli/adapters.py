"""`tunewright adapters`: register, list, show, load, unload, download and delete."""

from __future__ import annotations

from pathlib import Path

import click

from tunewright.cli.job_commands import pairs
from tunewright.cli.options import Commands, Remote, examples, force_option, limit_option, on_service
from tunewright.cli.output import number, page_size, size, when
from tunewright_client import Adapter

_NAME = "ft:tunewright-tiny:pirate:Zk3mP0aY"
_STATES = (
    "loaded", "loading", "draining", "unloaded", "failed", "checking", "unchecked", "quarantined", "merge_only",
)  # fmt: skip


@click.group(cls=Commands)
def adapters() -> None:
    """Register adapters, see which are loaded, load and unload them."""


@adapters.command(
    epilog=examples(
        "tunewright adapters register ./my-adapter --suffix mine",
        "tunewright adapters register my-adapter.tar.gz --base tunewright-tiny",
        "tunewright adapters register --path /srv/adapters/support",
        "tunewright adapters register --hub org/support-lora --revision main --no-load",
    )
)
@click.argument("source", required=False, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--folder",
    help="The folder of the archive that has the adapter, as checkpoint-200.  [default: the highest]",
)
@click.option("--path", help="A folder on the server instead, within one of its --adapter-root.")
@click.option(
    "--hub", "hub_id", metavar="ORG/NAME", help="A repository of the hub instead, which the server fetches."
)
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--base", help="The base it is for.  [default: as its config says, or the only one]")
@click.option("--suffix", help="Goes into its model's name.")
@click.option("--load/--no-load", default=True, show_default=True, help="Load it into its base's engine.")
@on_service
def register(
    remote: Remote,
    source: Path | None,
    folder: str | None,
    path: str | None,
    hub_id: str | None,
    revision: str | None,
    base: str | None,
    suffix: str | None,
    load: bool,
) -> int:
    """Register an adapter that was trained elsewhere.

    SOURCE is a folder that peft or mlx-lm saved, or a .tar, .tar.gz or .zip of one. It is checked against its base:
    its modules, shapes, rank and numbers. Pickled weights are refused.
    """
    if sum(way is not None for way in (source, path, hub_id)) != 1:
        raise click.UsageError("give SOURCE, --path or --hub, one of them")
    if revision is not None and hub_id is None:
        raise click.UsageError("--revision goes with --hub")
    if folder is not None and source is None:
        raise click.UsageError("--folder goes with SOURCE")
    adapter = remote.client.adapters.register(
        source,
        path=path,
        hub_id=hub_id,
        revision=revision,
        base=base,
        suffix=suffix,
        folder=folder,
        load=load,
    )
    return _print_adapter(remote, adapter)


@adapters.command(
    name="list",
    epilog=examples("tunewright adapters list", "tunewright adapters list --state failed --base qwen"),
)
@click.option("--base", help="Only adapters of this base.")
@click.option("--job", metavar="JOB_ID", help="Only what this job made.")
@click.option("--state", type=click.Choice(_STATES), help="Only adapters in this state.")
@limit_option(100)
@on_service
def list_adapters(remote: Remote, base: str | None, job: str | None, state: str | None, limit: int) -> None:
    """List the adapters, checkpoints among them, newest first."""
    pages = remote.client.adapters.list(limit=page_size(limit), base=base, job=job, state=state)
    remote.out.listing(
        pages,
        limit,
        ["MODEL", "STATE", "SOURCE", "RANK", "SIZE", "CREATED", "ERROR"],
        lambda a: (a.model, a.state, a.source, a.rank, size(a.bytes), when(a.created_at), a.error),
    )


@adapters.command(epilog=examples(f"tunewright adapters show {_NAME}"))
@click.argument("name", metavar="MODEL|ID")
@on_service
def show(remote: Remote, name: str) -> None:
    """Show one adapter and what it was made from, by its model's name or its id."""
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
            ("source", adapter.source),
            ("job", adapter.job_id),
            ("method", adapter.method),
            ("rank", adapter.rank),
            ("alpha", adapter.alpha),
            ("target modules", ", ".join(modules) if isinstance(modules, list) else modules),
            ("size", size(adapter.bytes)),
            ("sha256", adapter.sha256),
            ("created", when(adapter.created_at)),
            *_lineage(adapter),
            *_parity(adapter),
        ]
    )


def _parity(adapter: Adapter) -> list[tuple[str, object]]:
    found = adapter.parity
    if found is None:
        return []
    pending = "being checked" if found.check_pending else None
    forced = f"by {found.forced.get('who') or 'an unnamed user'}" if found.forced else None
    lost = found.four_bit
    trained = (
        f"{lost['loss']:.4f} as trained in 4 bits, {lost['served_loss']:.4f} as served in 16 bits"
        if lost
        else None
    )
    return [
        ("parity", found.verdict),
        ("reason", found.reason),
        ("loss", trained),
        ("check", pending),
        ("forced", forced),
    ]


def _lineage(adapter: Adapter) -> list[tuple[str, object]]:
    made_from = adapter.lineage
    if made_from is None:
        return []
    return [
        ("origin", made_from.origin),
        ("revision", made_from.revision),
        ("training file", made_from.training_file),
        ("mix", pairs({one["file"]: one["weight"] for one in made_from.mix or []})),
        ("validation file", made_from.validation_file),
        ("seed", made_from.seed),
        ("continued from", made_from.parent_sha256),
        *[(name.replace("_", " "), number(value)) for name, value in (made_from.metrics or {}).items()],
    ]


@adapters.command(epilog=examples(f"tunewright adapters load {_NAME}:ckpt-step-8"))
@click.argument("names", metavar="MODEL|ID...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Serve quarantined adapters all the same, and record that.")
@on_service
def load(remote: Remote, names: tuple[str, ...], force: bool) -> int:
    """Load adapters into their base's engine, now and after every restart."""
    return max(_print_adapter(remote, remote.client.adapters.load(name, force=force)) for name in names)


@adapters.command(epilog=examples(f"tunewright adapters unload {_NAME}"))
@click.argument("names", metavar="MODEL|ID...", nargs=-1, required=True)
@on_service
def unload(remote: Remote, names: tuple[str, ...]) -> int:
    """Unload adapters. Requests that run with them finish first."""
    return max(_print_adapter(remote, remote.client.adapters.unload(name)) for name in names)


@adapters.command(epilog=examples(f"tunewright adapters pin {_NAME}"))
@click.argument("names", metavar="MODEL|ID...", nargs=-1, required=True)
@on_service
def pin(remote: Remote, names: tuple[str, ...]) -> int:
    """Load adapters and never evict them for others."""
    return max(_print_adapter(remote, remote.client.adapters.pin(name)) for name in names)


@adapters.command(epilog=examples(f"tunewright adapters unpin {_NAME}"))
@click.argument("names", metavar="MODEL|ID...", nargs=-1, required=True)
@on_service
def unpin(remote: Remote, names: tuple[str, ...]) -> int:
    """Let adapters be evicted again."""
    return max(_print_adapter(remote, remote.client.adapters.unpin(name)) for name in names)


@adapters.command(
    epilog=examples(
        f"tunewright adapters download {_NAME}",
        f"tunewright adapters download {_NAME} --output pirate.tar && tar xf pirate.tar",
    )
)
@click.argument("name", metavar="MODEL|ID")
@click.option(
    "-o", "--output", metavar="PATH", default=".", help="File or folder to write to.  [default: this folder]"
)
@on_service
def download(remote: Remote, name: str, output: str) -> None:
    """Download an adapter's folder as a tar file, as peft loads it."""
    path = remote.client.adapters.download(name, output)
    if remote.out.as_json:
        remote.out.json({"id": name, "path": str(path), "bytes": path.stat().st_size})
    else:
        remote.out.line(str(path))


@adapters.command(epilog=examples(f"tunewright adapters delete {_NAME}"))
@click.argument("names", metavar="MODEL|ID...", nargs=-1, required=True)
@force_option
@on_service
def delete(remote: Remote, names: tuple[str, ...], force: bool) -> None:
    """Unload and delete adapters. Those that an unfinished job starts from are refused."""
    for name in names:
        deleted = remote.client.adapters.delete(name, force=force)
        if remote.out.as_json:
            remote.out.json(deleted)
        else:
            remote.out.line(f"{deleted.id} deleted")


@adapters.command(epilog=examples(f"tunewright adapters check {_NAME}"))
@click.argument("names", metavar="MODEL|ID...", nargs=-1, required=True)
@on_service
def check(remote: Remote, names: tuple[str, ...]) -> int:
    """Compare adapters again with their effect in peft. `adapters show` has the verdict."""
    return max(_print_adapter(remote, remote.client.adapters.check(name)) for name in names)


def _print_adapter(remote: Remote, adapter: Adapter) -> int:
    if remote.out.as_json:
        remote.out.json(adapter)
    else:
        remote.out.line(f"{adapter.model} {adapter.state}" + (f": {adapter.error}" if adapter.error else ""))
    return 1 if adapter.state == "failed" else 0
