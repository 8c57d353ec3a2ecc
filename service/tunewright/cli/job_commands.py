"""The commands that jobs of all kinds have: logs, events, cancel, pause, resume. `watch` is in `watch.py`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from tunewright.cli.options import Remote, examples, limit_option, on_service
from tunewright.cli.output import for_terminal, page_size, when
from tunewright_client import Batch, Cleaning, Evaluation, Export, Job, JobEvent, Synthesis, Tunewright

FOLLOW_SECONDS = 1.0


@dataclass(frozen=True)
class JobKind:
    """A kind of job on the command line: its command group, its noun, and its part of the SDK."""

    group: str
    noun: str
    example: str
    """An id, for the examples in help texts."""
    of: Callable[[Tunewright], Any]
    """Returns the SDK's methods for this kind: `client.jobs`, say."""
    product: str = "the model's name"
    """What `watch` prints in the end."""
    variable: str = "MODEL"
    """The shell variable that examples put it into."""

    @property
    def metavar(self) -> str:
        return f"{self.noun.upper()}_ID"

    def example_of(self, command: str, *rest: str) -> str:
        """An example for a help text: the command with an id, and further arguments."""
        return " ".join(("tunewright", self.group, command, self.example, *rest))


JOBS = JobKind("jobs", "job", "ftjob-Zk3mP0aYc7vTqLw9XnB2sR8d", lambda client: client.jobs)
EXPORTS = JobKind("exports", "export", "export-Zk3mP0aYc7vTqLw9XnB2sR8d", lambda client: client.exports)
CLEANINGS = JobKind(
    "cleanings",
    "cleaning",
    "clean-Zk3mP0aYc7vTqLw9XnB2sR8d",
    lambda client: client.cleanings,
    "the id of the new file",
    "FILE",
)
EVALUATIONS = JobKind(
    "evals",
    "evaluation",
    "eval-Zk3mP0aYc7vTqLw9XnB2sR8d",
    lambda client: client.evaluations,
    "the id of the file with all answers",
    "FILE",
)
BATCHES = JobKind(
    "batches",
    "batch",
    "batch-Zk3mP0aYc7vTqLw9XnB2sR8d",
    lambda client: client.batches,
    "the id of the file with the answers",
    "FILE",
)


SYNTHESES = JobKind(
    "syntheses",
    "synthesis",
    "synth-Zk3mP0aYc7vTqLw9XnB2sR8d",
    lambda client: client.syntheses,
    "the id of the file with the made rows",
    "FILE",
)


def steps(record: Job | Export | Cleaning | Evaluation | Batch | Synthesis) -> str | None:
    """The step and the number of steps, such as 12/48; None where unknown."""
    now = record.progress
    return f"{now.step}/{now.total_steps}" if now and now.step is not None and now.total_steps else None


def pairs(values: dict[str, Any] | None) -> str | None:
    """The values as KEY=VALUE on one line; None where there are none."""
    return " ".join(f"{key}={value}" for key, value in (values or {}).items()) or None


def logs_command(kind: JobKind, help: str) -> click.Command:
    """The command `logs`."""

    @click.command(
        name="logs",
        help=help,
        epilog=examples(kind.example_of("logs", "--tail 50"), kind.example_of("logs", "--follow")),
    )
    @click.argument("job_id", metavar=kind.metavar)
    @click.option("--tail", metavar="N", type=click.IntRange(1), help="Only the last N lines.")
    @click.option("-f", "--follow", is_flag=True, help=f"Continue until the {kind.noun} has ended.")
    @on_service
    def logs(remote: Remote, job_id: str, tail: int | None, follow: bool) -> None:
        jobs = kind.of(remote.client)
        if not follow:
            text = jobs.logs(job_id, tail)
            if remote.out.as_json:
                remote.out.json({"id": job_id, "log": text})
            else:
                click.echo(for_terminal(text), nl=bool(text) and not text.endswith("\n"))
            return
        printed = 0
        first = True
        while True:
            ended = jobs.retrieve(job_id).is_final  # before the log: nothing is written after it
            text = jobs.logs(job_id)
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

    return logs


def events_command(kind: JobKind, number: str) -> click.Command:
    """The command `events`; `number` is a field of the events' data, for the example."""

    @click.command(
        name="events",
        help=f"Show the events of {'an' if kind.noun[0] in 'aeiou' else 'a'} {kind.noun}, oldest first; the newest "
        "when there are more than the limit.",
        epilog=examples(
            kind.example_of("events", "--limit 10"),
            kind.example_of("events", f"--follow --json | jq .data.{number}"),
        ),
    )
    @click.argument("job_id", metavar=kind.metavar)
    @limit_option(100)
    @click.option(
        "-f",
        "--follow",
        is_flag=True,
        help=f"Show all of them, and continue until the {kind.noun} has ended.",
    )
    @on_service
    def events(remote: Remote, job_id: str, limit: int, follow: bool) -> None:
        jobs = kind.of(remote.client)
        if follow:
            with jobs.stream_events(job_id) as stream:
                for event in stream:
                    if remote.out.as_json:
                        remote.out.json(event)
                    else:
                        remote.out.line("  ".join(str(cell) for cell in _row(event)))
            return
        found = jobs.events(job_id, limit=page_size(limit))
        remote.out.listing(found, limit, ["TIME", "LEVEL", "MESSAGE"], _row, oldest_first=True)

    return events


def _row(event: JobEvent) -> tuple[str | None, str, str]:
    return when(event.created_at), event.level, event.message


def action_command(kind: JobKind, action: str, help: str) -> click.Command:
    """The command `cancel`, `pause` or `resume`, for one or several jobs."""

    @click.command(name=action, help=help, epilog=examples(kind.example_of(action)))
    @click.argument("job_ids", metavar=f"{kind.metavar}...", nargs=-1, required=True)
    @on_service
    def act(remote: Remote, job_ids: tuple[str, ...]) -> None:
        for job_id in job_ids:
            job = getattr(kind.of(remote.client), action)(job_id)
            if remote.out.as_json:
                remote.out.json(job)
            else:
                remote.out.line(f"{job.id} {job.status}")

    return act
