"""`tunewright backup` and `tunewright restore`: for a local data folder, with or without a running service."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from tunewright.atomic import is_disk_full
from tunewright.cli.demo_service import Interrupts
from tunewright.cli.options import examples
from tunewright.cli.output import Output, size
from tunewright.config import StorageOptions, artifacts_defaults, data_defaults, database_url_in

LINE_SECONDS = 10.0
"""Seconds between two lines of progress where there is no terminal."""


def on_data_folder(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --data-dir, --database-url and --json."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs."),
        click.option(
            "--database-url",
            metavar="URL",
            help="The one of the service.  [env: TUNEWRIGHT_DATABASE_URL; default: SQLite in the data folder]",
        ),
        click.option(
            "--data-dir",
            metavar="DIR",
            type=click.Path(file_okay=False, path_type=Path),
            help="The service's data folder.  [env: TUNEWRIGHT_DATA_DIR; default: tunewright-data]",
        ),
    ):
        function = option(function)
    return function


@click.command(
    epilog=examples(
        "tunewright backup",
        "tunewright backup /mnt/backups --data-dir /srv/tunewright",
        "tunewright backup monday.tar --json | jq .bytes",
    )
)
@click.argument("archive", required=False, type=click.Path(path_type=Path))
@click.option(
    "--artifacts-endpoint",
    metavar="URL",
    help="The one of the service.  [env: TUNEWRIGHT_ARTIFACTS_ENDPOINT]",
)
@click.option("--artifacts", metavar="URL", help="The one of the service.  [env: TUNEWRIGHT_ARTIFACTS]")
@on_data_folder
def backup(
    archive: Path | None,
    data_dir: Path | None,
    database_url: str | None,
    artifacts: str | None,
    artifacts_endpoint: str | None,
    as_json: bool,
) -> None:
    """Archive a service's data, also while it serves and trains.

    ARCHIVE is a file that does not exist yet, or a folder to put one in; by default it is
    tunewright-backup-<UTC time>.tar in this folder. It holds the database, files, tuned models and jobs with their
    checkpoints, and hashes of it all; models that are in a bucket (--artifacts) are fetched. Bases and logs of engines
    are not in it.
    """
    # Imported here, since it loads the service's libraries, which other commands do not need.
    from tunewright.backup.create import default_name, make_backup
    from tunewright.registry.workspace import Workspace

    out = Output(as_json)
    folder, url = _where(data_dir, database_url)
    target = archive or Path(default_name())
    if target.is_dir():
        target /= default_name()
    with _failures(), Interrupts(), _progress(out) as on_progress:
        workspace = Workspace.of(_storage(folder, artifacts, artifacts_endpoint))
        made = make_backup(workspace, url, target.absolute(), on_progress)
    for what in made.left_out:
        out.note(f"left out, since it was removed or incomplete: checkpoint {what}")
    for id in made.changed:
        out.note(f"warning: {id} is archived as it is on the disk, which is not what was uploaded")
    counts = made.manifest.counts
    if out.as_json:
        out.json(
            {
                "archive": str(target),
                "bytes": made.bytes,
                "created_at": made.manifest.created_at,
                **counts,
                "left_out": made.left_out,
                "changed": made.changed,
            }
        )
        return
    out.fields([("archive", target), ("size", size(made.bytes)), *counts.items()])


@click.command(
    epilog=examples(
        "tunewright restore tunewright-backup-20260131T093000Z.tar --data-dir /srv/tunewright",
        "tunewright restore monday.tar --replace        also under a running service",
    )
)
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--replace", is_flag=True, help="Replace existing data, which is kept in a folder.")
@on_data_folder
def restore(
    archive: Path, replace: bool, data_dir: Path | None, database_url: str | None, as_json: bool
) -> None:
    """Put an archive into a data folder.

    The whole archive is checked first. A folder that has data is refused without --replace; the old data is then kept
    in the folder replaced-..., to be removed by hand. A running service stops its processes, changes over and
    continues; requests wait meanwhile. Jobs that were in training continue from their last checkpoints.
    """
    from tunewright.backup.restore import restore_archive
    from tunewright.registry.workspace import Workspace

    out = Output(as_json)
    folder, url = _where(data_dir, database_url)
    with _failures(), Interrupts(), _progress(out) as on_progress:
        done = restore_archive(Workspace(folder), url, archive, replace=replace, on_progress=on_progress)
    counts = done.manifest.counts
    if out.as_json:
        kept = str(done.replaced) if done.replaced else None
        out.json({"data_dir": str(folder), "replaced": kept, "running": done.running, **counts})
        return
    out.fields(
        [
            ("restored", folder),
            ("from", f"{archive} ({done.manifest.created_at}, Tunewright {done.manifest.version})"),
            *counts.items(),
            (
                "before",
                f"kept in {done.replaced}: remove it when it is not needed" if done.replaced else None,
            ),
        ]
    )
    out.note("The service continues with it." if done.running else "Start the service to continue with it.")


def _where(data_dir: Path | None, database_url: str | None) -> tuple[Path, str]:
    default_dir, default_url = data_defaults()
    folder = data_dir or default_dir
    return folder, database_url or default_url or database_url_in(folder)


def _storage(folder: Path, artifacts: str | None, endpoint: str | None) -> StorageOptions:
    default, default_endpoint = artifacts_defaults()
    url = artifacts or default
    try:
        return StorageOptions(
            data_dir=folder,
            artifacts=url,
            artifacts_endpoint=endpoint or default_endpoint,
            files_in_bucket=url is not None,  # what is not there is looked for in the data folder alone
        )
    except ValidationError as error:
        fault = error.errors()[0]
        option = "--" + str((*fault["loc"], "artifacts")[0]).replace("_", "-")
        raise click.ClickException(f"{option}: {str(fault['msg']).removeprefix('Value error, ')}") from error


@contextmanager
def _failures() -> Iterator[None]:
    from tunewright.backup.errors import BackupError
    from tunewright.errors import TunewrightError as ServiceError
    from tunewright.store.sqlite_file import DatabaseUnusable

    try:
        yield
    except (BackupError, DatabaseUnusable, ServiceError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        if not is_disk_full(error):
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise click.ClickException(
            f"the disk is full{where}. Nothing is left of it, and nothing was changed"
        ) from error


@contextmanager
def _progress(out: Output) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar at a terminal; elsewhere a line at the start of each step, and one every ten seconds during it."""
    if not out.stderr.is_terminal:
        yield _Lines(out)
        return
    with Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True),
        console=out.stderr, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total or None)

        yield show


class _Lines:
    def __init__(self, out: Output) -> None:
        self._out = out
        self._what = ""
        self._printed_at = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what == self._what and now - self._printed_at < LINE_SECONDS:
            return
        self._what, self._printed_at = what, now
        self._out.note(f"{what}: {size(done)} of {size(total)}" if done else what)
