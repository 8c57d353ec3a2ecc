"""`tunewright jobs watch`, and watching a job that was just created."""

from __future__ import annotations

import click

from tunewright.cli.options import INTERRUPTED, Remote, examples, on_service
from tunewright.cli.progress import view_for, watch_job
from tunewright_client import JobError


@click.command(
    epilog=examples(
        "tunewright jobs watch ftjob-Zk3mP0aYc7vTqLw9XnB2sR8d",
        "MODEL=$(tunewright jobs watch ftjob-Zk3mP0aYc7vTqLw9XnB2sR8d) && tunewright chat $MODEL Hello",
    )
)
@click.argument("job_id")
@on_service
def watch(remote: Remote, job_id: str) -> int:
    """Show a job's progress until it has ended, then print the model's name.

    The exit code is 0 when the job has succeeded, else 1. Ctrl-C ends the watching, not the job. With --json:
    its events, one a line, then the job.
    """
    return watch_to_the_end(remote, job_id)


def watch_to_the_end(remote: Remote, job_id: str) -> int:
    """Raises JobError where the job does not succeed; returns the exit code."""
    try:
        with view_for(remote.out) as view:
            job = watch_job(remote.client, job_id, view)
    except KeyboardInterrupt:
        remote.out.note(
            f"\n{job_id} goes on without us. See it again: tunewright jobs watch {job_id}. "
            f"Stop it: tunewright jobs cancel {job_id}."
        )
        return INTERRUPTED
    except JobError as error:
        if remote.out.as_json:
            remote.out.json(error.job)
        raise
    if remote.out.as_json:
        remote.out.json(job)
    else:
        remote.out.line(job.fine_tuned_model or job.id)
    return 0
