"""`tunewright jobs`: look at jobs, watch and cancel them. Creating one is in `create.py`."""

from __future__ import annotations

import time
from collections.abc import Callable

import click

from tunewright.cli.create import create
from tunewright.cli.options import Commands, Remote, examples, limit_option, on_service
from tunewright.cli.output import for_terminal, number, page_size, when
from tunewright.cli.watch import watch
from tunewright_client import Job, JobEvent

FOLLOW_SECONDS = 1.0


@click.group(cls=Commands)
def jobs() -> None:
    """Create fine-tuning jobs and see how they go."""


jobs.add_command(create)
jobs.add_command(watch)


@jobs.command(name="list", epilog=examples("tunewright jobs list", "tunewright jobs list --limit 3 --json"))
@limit_option(20)
@on_service
def list_jobs(remote: Remote, limit: int) -> None:
    """List the jobs, newest first."""

    def row(job: Job) -> tuple[object, ...]:
        now = job.progress
        step = f"{now.step}/{now.total_steps}" if now and now.step is not None and now.total_steps else None
        loss = number(now.train_loss) if now else None
        return job.id, job.status, step, loss, job.model, job.fine_tuned_model, when(job.created_at)

    remote.out.listing(
        remote.client.jobs.list(limit=page_size(limit)),
        limit,
        ["ID", "STATUS", "STEP", "LOSS", "MODEL", "RESULT", "CREATED"],
        row,
    )


@jobs.command(epilog=examples("tunewright jobs show ftjob-Zk3mP0aYc7vTqLw9XnB2sR8d"))
@click.argument("job_id")
@on_service
def show(remote: Remote, job_id: str) -> None:
    """Show one job: its settings, progress, result or error."""
    job = remote.client.jobs.retrieve(job_id)
    if remote.out.as_json:
        remote.out.json(job)
        return
    settings = job.tuning.model_dump(exclude_none=True) if job.tuning else {}
    now = job.progress
    remote.out.fields(
        [
            ("id", job.id),
            ("status", job.status),
            ("model", job.model),
            ("result", job.fine_tuned_model),
            ("error", job.error.message if job.error else None),
            ("training file", job.training_file),
            ("validation file", job.validation_file),
            ("step", f"{now.step}/{now.total_steps}" if now else None),
            ("loss", number(now.train_loss) if now else None),
            ("trained tokens", job.trained_tokens),
            ("tuning", " ".join(f"{k}={_value(v)}" for k, v in settings.items()) or None),
            ("seed", job.seed),
            ("metadata", " ".join(f"{k}={v}" for k, v in (job.metadata or {}).items()) or None),
            ("created", when(job.created_at)),
            ("finished", when(job.finished_at)),
        ]
    )


def _value(value: object) -> object:
    return ",".join(map(str, value)) if isinstance(value, list) else value


@jobs.command(
    epilog=examples(
        "tunewright jobs logs ftjob-Zk3mP0aYc7vTqLw9XnB2sR8d --tail 50",
        "tunewright jobs logs ftjob-Zk3mP0aYc7vTqLw9XnB2sR8d --follow",
    )
)
@click.argument("job_id")
@click.option("--tail", metavar="N", type=click.IntRange(1), help="Only the last N lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@on_service
def logs(remote: Remote, job_id: str, tail: int | None, follow: bool) -> None:
    """Print what the training process itself wrote."""
    if not follow:
        text = remote.client.jobs.logs(job_id, tail)
        if remote.out.as_json:
            remote.out.json({"id": job_id, "log": text})
        else:
            click.echo(for_terminal(text), nl=bool(text) and not text.endswith("\n"))
        return
    printed = 0
    first = True
    while True:
        ended = remote.client.jobs.retrieve(job_id).is_final  # before the log: nothing is written after it
        text = remote.client.jobs.logs(job_id)
        whole = len(text) if ended else text.rfind("\n") + 1
        lines = text[printed:whole].splitlines()
        for line in lines[-tail:] if first and tail else lines:
            if remote.out.as_json:
                remote.out.json({"id": job_id, "line": line})
            else:
                click.echo(for_terminal(line))
        printed, first = whole, False
        if ended:
            return
        time.sleep(FOLLOW_SECONDS)


def _on_each(remote: Remote, job_ids: tuple[str, ...], action: Callable[[str], Job]) -> None:
    for job_id in job_ids:
        job = action(job_id)
        if remote.out.as_json:
            remote.out.json(job)
        else:
            remote.out.line(f"{job.id} {job.status}")


@jobs.command(epilog=examples("tunewright jobs cancel ftjob-Zk3mP0aYc7vTqLw9XnB2sR8d"))
@click.argument("job_ids", metavar="JOB_ID...", nargs=-1, required=True)
@on_service
def cancel(remote: Remote, job_ids: tuple[str, ...]) -> None:
    """Stop jobs for good."""
    _on_each(remote, job_ids, remote.client.jobs.cancel)


@jobs.command(epilog=examples("tunewright jobs pause ftjob-Zk3mP0aYc7vTqLw9XnB2sR8d"))
@click.argument("job_ids", metavar="JOB_ID...", nargs=-1, required=True)
@on_service
def pause(remote: Remote, job_ids: tuple[str, ...]) -> None:
    """Hold jobs: running ones save a checkpoint and free their device."""
    _on_each(remote, job_ids, remote.client.jobs.pause)


@jobs.command(epilog=examples("tunewright jobs resume ftjob-Zk3mP0aYc7vTqLw9XnB2sR8d"))
@click.argument("job_ids", metavar="JOB_ID...", nargs=-1, required=True)
@on_service
def resume(remote: Remote, job_ids: tuple[str, ...]) -> None:
    """Let paused jobs go on from where they stopped."""
    _on_each(remote, job_ids, remote.client.jobs.resume)


@jobs.command(
    epilog=examples(
        "tunewright jobs events ftjob-Zk3mP0aYc7vTqLw9XnB2sR8d --limit 10",
        "tunewright jobs events ftjob-Zk3mP0aYc7vTqLw9XnB2sR8d --follow --json | jq .data.train_loss",
    )
)
@click.argument("job_id")
@limit_option(100)
@click.option("-f", "--follow", is_flag=True, help="All of them, and go on until the job has ended.")
@on_service
def events(remote: Remote, job_id: str, limit: int, follow: bool) -> None:
    """Show what happened to a job, oldest first; the newest when there are more than the limit."""
    if follow:
        with remote.client.jobs.stream_events(job_id) as stream:
            for event in stream:
                if remote.out.as_json:
                    remote.out.json(event)
                else:
                    remote.out.line("  ".join(str(cell) for cell in _row(event)))
        return
    found = remote.client.jobs.events(job_id, limit=page_size(limit))
    remote.out.listing(found, limit, ["TIME", "LEVEL", "MESSAGE"], _row, oldest_first=True)


def _row(event: JobEvent) -> tuple[str | None, str, str]:
    return when(event.created_at), event.level, event.message


@jobs.command(epilog=examples("tunewright jobs checkpoints ftjob-Zk3mP0aYc7vTqLw9XnB2sR8d"))
@click.argument("job_id")
@limit_option(20)
@on_service
def checkpoints(remote: Remote, job_id: str, limit: int) -> None:
    """List a job's checkpoints, newest first: each is a model of its own that can be loaded."""
    remote.out.listing(
        remote.client.jobs.checkpoints(job_id, limit=page_size(limit)),
        limit,
        ["MODEL", "STEP", "LOSS", "VALID LOSS", "CREATED"],
        lambda checkpoint: (
            checkpoint.fine_tuned_model_checkpoint,
            checkpoint.step_number,
            number(checkpoint.metrics.train_loss),
            number(checkpoint.metrics.valid_loss),
            when(checkpoint.created_at),
        ),
    )
