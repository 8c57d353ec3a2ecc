"""`tunewright jobs`: look at jobs, watch and cancel them. Creating one is in `create.py`."""

from __future__ import annotations

from typing import Any

import click

from tunewright.cli.create import create
from tunewright.cli.evaluate import evaluated_text, show_evaluation
from tunewright.cli.job_commands import JOBS, action_command, events_command, logs_command, pairs, steps
from tunewright.cli.options import Commands, Remote, examples, limit_option, on_service
from tunewright.cli.output import duration, number, page_size, size, when
from tunewright.cli.watch import watch_command
from tunewright_client import Job, JobBest, JobForgetting, JobMeasured, JobPlanned


@click.group(cls=Commands)
def jobs() -> None:
    """Create fine-tuning jobs and follow their progress."""


jobs.add_command(create)
jobs.add_command(watch_command(JOBS, "tunewright chat $MODEL Hello"))


@jobs.command(name="list", epilog=examples("tunewright jobs list", "tunewright jobs list --limit 3 --json"))
@limit_option(20)
@on_service
def list_jobs(remote: Remote, limit: int) -> None:
    """List the jobs, newest first."""

    def row(job: Job) -> tuple[object, ...]:
        now = job.progress
        loss = number(now.train_loss) if now else None
        return job.id, job.status, steps(job), loss, job.model, job.fine_tuned_model, when(job.created_at)

    remote.out.listing(
        remote.client.jobs.list(limit=page_size(limit)),
        limit,
        ["ID", "STATUS", "STEP", "LOSS", "MODEL", "RESULT", "CREATED"],
        row,
    )


@jobs.command(
    epilog=examples(
        f"tunewright jobs tensorboard {JOBS.example}",
        f"tunewright jobs tensorboard {JOBS.example} -o run.tar && tar xf run.tar",
    )
)
@click.argument("job_id")
@click.option(
    "-o", "--output", metavar="PATH", default=".", help="File or folder to write to.  [default: this folder]"
)
@on_service
def tensorboard(remote: Remote, job_id: str, output: str) -> None:
    """Download a job's TensorBoard files as a tar file, which may be done while it runs."""
    path = remote.client.jobs.tensorboard(job_id, output)
    if remote.out.as_json:
        remote.out.json({"id": job_id, "path": str(path), "bytes": path.stat().st_size})
    else:
        remote.out.line(str(path))


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
            ("mix", pairs({one["file"]: one["weight"] for one in (job.data or {}).get("mix") or []})),
            ("validation file", job.validation_file),
            ("step", steps(job)),
            ("loss", number(now.train_loss) if now else None),
            ("trained tokens", job.trained_tokens),
            ("best", _best(job.best)),
            ("follows", job.after),
            ("pipeline", job.pipeline),
            ("reported", _reported(job)),
            ("planned", _planned(job.planned)),
            ("measured", _measured(job.measured)),
            ("forgetting", _forgetting(job.forgetting)),
            ("tuning", pairs({key: _value(value) for key, value in settings.items()})),
            ("seed", job.seed),
            ("metadata", pairs(job.metadata)),
            ("created", when(job.created_at)),
            ("finished", when(job.finished_at)),
        ]
    )
    if job.evaluation is not None:
        show_evaluation(remote.out, job.evaluation)


def _reported(job: Job) -> str | None:
    if job.unreported or not job.integrations:
        return job.unreported
    return "; ".join(map(_integration, job.integrations))


def _integration(one: dict[str, Any]) -> str:
    """An integration with what says where: a project, an experiment."""
    of_type = one.get(one["type"]) or {}
    where = next((f", {name} {of_type[name]}" for name in ("project", "experiment") if of_type.get(name)), "")
    return f"{one['type']}{where}"


def _best(best: JobBest | None) -> str | None:
    if best is None:
        return None
    ended = f"{'stopped early' if best.stopped_early else 'ended'} after step {best.last_step}"
    return f"step {best.step} ({best.metric} {best.value:.4f}), {ended}"


def _planned(planned: JobPlanned | None) -> str | None:
    if planned is None:
        return None
    time = planned.seconds
    parts = (
        f"{planned.steps} steps, {planned.tokens} tokens",
        size(planned.peak_bytes),
        f"{duration(time.least)} to {duration(time.most)}" if time else None,
        str(planned.cost) if planned.cost else None,
    )
    return ", ".join(part for part in parts if part)


def _measured(measured: JobMeasured | None) -> str | None:
    if measured is None:
        return None
    seconds = measured.seconds
    parts = (
        f"{measured.tokens} tokens after the first step in {duration(seconds)}" if seconds else None,
        f"waited {measured.waited:.1f}s for rows" if measured.waited is not None else None,
        f"reference in {duration(measured.reference_seconds)}" if measured.reference_seconds else None,
        size(measured.peak_bytes),
        str(measured.cost) if measured.cost else None,
        measured.device,
    )
    return ", ".join(part for part in parts if part)


def _forgetting(found: JobForgetting | None) -> str | None:
    if found is None:
        return None
    kl = f"KL {found.kl:.3f} ({found.low:.3f} to {found.high:.3f}) on general text"
    loss = f"loss there {found.loss_before:.3f} before, {found.loss:.3f} now"
    return f"{kl}, {loss}" + (f"; more than {found.bound:g} is much" if found.is_beyond else "")


def _value(value: object) -> object:
    return ",".join(map(str, value)) if isinstance(value, list) else value


jobs.add_command(logs_command(JOBS, "Print the log of the training process."))
jobs.add_command(action_command(JOBS, "cancel", "Stop jobs for good."))
jobs.add_command(
    action_command(JOBS, "pause", "Pause jobs: running ones save a checkpoint and free their device.")
)
jobs.add_command(action_command(JOBS, "resume", "Let paused jobs continue from their checkpoints."))
jobs.add_command(events_command(JOBS, "train_loss"))


@jobs.command(epilog=examples("tunewright jobs checkpoints ftjob-Zk3mP0aYc7vTqLw9XnB2sR8d"))
@click.argument("job_id")
@limit_option(20)
@on_service
def checkpoints(remote: Remote, job_id: str, limit: int) -> None:
    """List a job's checkpoints, newest first. Each is a model of its own that can be loaded."""
    remote.out.listing(
        remote.client.jobs.checkpoints(job_id, limit=page_size(limit)),
        limit,
        ["MODEL", "STEP", "LOSS", "VALID LOSS", "EVALUATED", "CREATED"],
        lambda checkpoint: (
            checkpoint.fine_tuned_model_checkpoint,
            checkpoint.step_number,
            number(checkpoint.metrics.train_loss),
            number(checkpoint.metrics.valid_loss),
            evaluated_text(checkpoint.metrics),
            when(checkpoint.created_at),
        ),
    )


@jobs.command(epilog=examples("tunewright jobs pipeline ftjob-Zk3mP0aYc7vTqLw9XnB2sR8d"))
@click.argument("job_id")
@click.option("--cancel", is_flag=True, help="Stop all of them that have not ended, for good.")
@on_service
def pipeline(remote: Remote, job_id: str, cancel: bool) -> None:
    """Show the jobs that follow each other, of which the first is JOB_ID (`jobs create --then`)."""
    found = remote.client.jobs.cancel_pipeline(job_id) if cancel else remote.client.jobs.pipeline(job_id)
    if remote.out.as_json:
        remote.out.json(found)
        return
    for job in found.jobs:
        remote.out.line(" ".join(filter(None, [job.id, str(job.status), job.fine_tuned_model])))
