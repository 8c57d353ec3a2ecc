"""Watches a job of any kind to its end: `tunewright jobs watch`, and the `--watch` of `create`."""

from __future__ import annotations

import click

from tunewright.cli.job_commands import JobKind
from tunewright.cli.options import INTERRUPTED, Remote, examples, on_service
from tunewright.cli.progress import view_for, watch_job
from tunewright_client import Batch, Cleaning, Evaluation, Export, Job, JobError, Synthesis


def watch_command(kind: JobKind, then: str) -> click.Command:
    """The command `watch`; `then` is an example of a command that uses the product afterwards."""

    @click.command(
        name="watch",
        help=f"Show the {kind.noun}'s progress until it has ended, then print {kind.product}.\n\n"
        f"The exit code is 0 when the {kind.noun} has succeeded, else 1. Ctrl-C ends the watching, not the "
        f"{kind.noun}. With --json: its events, one a line, then the {kind.noun}.",
        epilog=examples(kind.example_of("watch"), f"{kind.variable}=$({kind.example_of('watch')}) && {then}"),
    )
    @click.argument("job_id", metavar=kind.metavar)
    @on_service
    def watch(remote: Remote, job_id: str) -> int:
        return watch_to_the_end(remote, kind, job_id)

    return watch


def print_created(
    remote: Remote, kind: JobKind, job: Job | Export | Cleaning | Evaluation | Batch | Synthesis, watch: bool
) -> int:
    """Print the id of a created job, and watch it where `watch` is set. Returns the exit code."""
    if remote.out.as_json:
        remote.out.json(job)
    elif watch:
        remote.out.note(job.id)
    else:
        remote.out.line(job.id)
    return watch_to_the_end(remote, kind, job.id) if watch else 0


def watch_to_the_end(remote: Remote, kind: JobKind, job_id: str) -> int:
    """Show the progress of a job until it has ended. Returns the exit code; raises JobError unless it succeeds."""
    try:
        with view_for(remote.out) as view:
            job = watch_job(kind.of(remote.client).wait, job_id, view)
    except KeyboardInterrupt:
        remote.out.note(
            f"\n{job_id} continues. Watch it again: tunewright {kind.group} watch {job_id}. "
            f"Stop it: tunewright {kind.group} cancel {job_id}."
        )
        return INTERRUPTED
    except JobError as error:
        if remote.out.as_json:
            remote.out.json(error.job)
        raise
    if remote.out.as_json:
        remote.out.json(job)
    else:
        remote.out.line(job.product or job.id)
    return 0
