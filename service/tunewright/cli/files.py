"""`tunewright files`: upload, list, download and delete."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from tunewright.cli.options import Commands, Remote, examples, limit_option, on_service
from tunewright.cli.output import page_size, size, when
from tunewright_client import File

_POLL_SECONDS = 1.0
_LARGE = 64 * 2**20
"""Bytes of a file above which it is sent in parts, each of which is retried alone."""


@click.group(cls=Commands)
def files() -> None:
    """Upload training data, and download the metrics of jobs."""


@files.command(epilog=examples("tunewright files upload train.jsonl validation.jsonl"))
@click.argument(
    "paths",
    metavar="PATH...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "--purpose", type=click.Choice(["fine-tune", "batch"]), default="fine-tune", show_default=True,
    help="What they are for: training, or requests of a batch.",
)  # fmt: skip
@on_service
def upload(remote: Remote, paths: tuple[Path, ...], purpose: str) -> None:
    """Upload files for jobs to train on: JSONL, a JSON array, CSV or Parquet, also gzipped.

    Large ones are sent in parts. Their rows are checked; what is wrong with them is told with its line. `tunewright
    data check` checks files before they are uploaded.
    """
    uploaded = []
    for path in paths:
        if path.stat().st_size > _LARGE:
            sent = remote.client.uploads.upload_file(path, purpose)
        else:
            sent = remote.client.files.upload(path, purpose)
        uploaded.append(_checked(remote, sent))
        if remote.out.as_json:
            remote.out.json(uploaded[-1])
        for problem in _problems(uploaded[-1]):
            remote.out.note(f"{path.name}: {problem}")
    if not remote.out.as_json:
        remote.out.table(_COLUMNS, map(_row, uploaded))


def _checked(remote: Remote, file: File) -> File:
    """The file, once the service has checked it."""
    told = False
    while file.status == "uploaded":
        if not told:
            remote.out.note(f"{file.filename}: its rows are being checked; Ctrl-C leaves that to the service")
            told = True
        time.sleep(_POLL_SECONDS)
        file = remote.client.files.retrieve(file.id)
    return file


def _problems(file: File) -> list[str]:
    """What is wrong with a file, a line for each fault."""
    if file.status != "error":
        return []
    faults = file.report.faults if file.report else []
    problems = [str(fault) for fault in faults] or [file.status_details or "it cannot be used"]
    if file.report and file.report.has_more_faults:
        problems.append("there may be more faults")
    return problems


@files.command(
    name="list", epilog=examples("tunewright files list", "tunewright files list --json | jq .data[].id")
)
@click.option(
    "--purpose",
    help="Only files of this purpose: fine-tune, fine-tune-results, evaluation-results, batch, batch_output or "
    "synthesis-dropped.",
)
@limit_option(50)
@on_service
def list_files(remote: Remote, purpose: str | None, limit: int) -> None:
    """List the files, newest first."""
    remote.out.listing(
        remote.client.files.list(purpose=purpose, limit=page_size(limit)), limit, _COLUMNS, _row
    )


_COLUMNS = ["ID", "NAME", "SIZE", "PURPOSE", "STATUS", "FORMAT", "ROWS", "CREATED"]


def _row(file: File) -> tuple[object, ...]:
    report = file.report
    rows = report.rows if report and file.status == "processed" else None
    return (
        file.id, file.filename, size(file.bytes), file.purpose, file.status, report.format if report else None, rows,
        when(file.created_at),
    )  # fmt: skip


@files.command(epilog=examples("tunewright files show file-7aZkQ3vJ0c9yW2mXb4LrTn5e"))
@click.argument("file_id")
@on_service
def show(remote: Remote, file_id: str) -> None:
    """Show one file: its format, its rows, and what is wrong with them."""
    file = remote.client.files.retrieve(file_id)
    if remote.out.as_json:
        remote.out.json(file)
        return
    report = file.report
    remote.out.fields(
        [
            ("id", file.id),
            ("name", file.filename),
            ("size", size(file.bytes)),
            ("purpose", file.purpose),
            ("status", file.status),
            ("container", report.container if report else None),
            ("format", report.format if report else None),
            ("rows for", report.kind if report else None),
            ("rows", report.rows if report and file.status == "processed" else None),
            ("ignored fields", ", ".join(report.ignored_fields) or None if report else None),
            *[("fault", problem) for problem in _problems(file)],
            ("created", when(file.created_at)),
            ("expires", when(file.expires_at)),
        ]
    )


@files.command(
    epilog=examples(
        "tunewright files download file-7aZkQ3vJ0c9yW2mXb4LrTn5e",
        "tunewright files download file-7aZkQ3vJ0c9yW2mXb4LrTn5e --output - | head -3",
    )
)
@click.argument("file_id")
@click.option(
    "-o", "--output", metavar="PATH", help="File or folder to write to; - is stdout.  [default: its own name]"
)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@on_service
def download(remote: Remote, file_id: str, output: str | None, force: bool) -> None:
    """Download a file, as it was uploaded."""
    if output == "-":
        click.echo(remote.client.files.content(file_id), nl=False)
        return
    file = remote.client.files.retrieve(file_id)
    target = Path(output or ".")
    if target.is_dir():
        target /= os.path.basename(file.filename) or file_id
    if target.exists() and not force:
        raise click.ClickException(f"{target} exists already; --force overwrites it")
    content = remote.client.files.content(file_id)
    target.write_bytes(content)
    if remote.out.as_json:
        remote.out.json({"id": file_id, "path": str(target), "bytes": len(content)})
    else:
        remote.out.line(str(target))


@files.command(epilog=examples("tunewright files delete file-7aZkQ3vJ0c9yW2mXb4LrTn5e"))
@click.argument("file_ids", metavar="FILE_ID...", nargs=-1, required=True)
@on_service
def delete(remote: Remote, file_ids: tuple[str, ...]) -> None:
    """Delete files. Those that an unfinished job needs are refused."""
    for file_id in file_ids:
        deleted = remote.client.files.delete(file_id)
        if remote.out.as_json:
            remote.out.json(deleted)
        else:
            remote.out.line(f"{deleted.id} deleted")
