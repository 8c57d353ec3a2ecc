"""Families of the state of the service: what the database, the job folders and the worker's numbers tell."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric

from tunewright.api.telemetry.families import counter, gauge
from tunewright.engine.tally import LOAD_SECONDS, Change, Tallied, read_tally
from tunewright.evaluate.compare import Verdict
from tunewright.jobs.folder import JobFolder
from tunewright.jobs.kinds import registered_kinds
from tunewright.registry.workspace import Workspace
from tunewright.store.figures import CHANGES, Figures, RunningJob
from tunewright.store.states import DeliveryState, EngineState, JobState
from tunewright.store.store import Store

_EVENTS_BYTES = 2**16
_STEPS = 20
"""Steps over whose mean the time of a step is told."""
_PROCESSES = ("api", "scheduler", "worker")
_JOB = ("job_id", "kind", "base")
"""Not `job`, which is the label of what Prometheus scrapes."""


@dataclass(frozen=True)
class State:
    """What was read at one time."""

    figures: Figures
    step_seconds: Mapping[str, float]
    """By the id of the running job."""
    beats: Mapping[str, float]
    """Unix seconds of the last progress, by the id of the running job."""
    tally: Tallied
    alive: Mapping[str, float]
    """Unix seconds of the last heartbeat, by process."""
    disk: tuple[int, int]
    """Bytes of the data folder's disk, and how many of them are free."""


def read_state(store: Store, workspace: Workspace) -> State:
    """Blocks for as long as the database and the disk do."""
    figures = store.figures.read()
    folders = {job.id: JobFolder(workspace.job(job.id)) for job in figures.running}
    steps = {id: step_seconds(folder) for id, folder in folders.items()}
    beats = {id: folder.last_beat() for id, folder in folders.items()}
    alive = {name: _touched(workspace.heartbeat(name)) for name in _PROCESSES}
    disk = shutil.disk_usage(workspace.path)
    return State(
        figures,
        {id: seconds for id, seconds in steps.items() if seconds is not None},
        {id: at for id, at in beats.items() if at},
        read_tally(workspace.tally),
        {name: at for name, at in alive.items() if at is not None},
        (disk.total, disk.free),
    )


def step_seconds(folder: JobFolder) -> float | None:
    """The mean time of the last steps in a job's events; None before the second. A resumed process repeats steps, which
    are not compared with those before."""
    told: list[tuple[float, int]] = []
    for event in folder.last_events(_EVENTS_BYTES):
        data = event.get("data")
        if event.get("type") != "metrics" or not isinstance(data, dict) or "step" not in data:
            continue
        at = (float(event.get("created_at", 0.0)), int(data["step"]))
        if told and at[1] <= told[-1][1]:
            told.clear()
        told.append(at)
    told = told[-_STEPS - 1 :]
    if len(told) < 2:
        return None
    (began, first), (ended, last) = told[0], told[-1]
    return max(0.0, ended - began) / (last - first)


def _touched(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def of_state(state: State, most_names: int) -> list[Metric]:
    found = state.figures
    return [
        *_of_jobs(state),
        *_of_running_jobs(state),
        *_of_engines(found),
        *_of_adapters(state),
        *_of_aliases(found, most_names),
        gauge("files", "Files that are stored.", (), [((), found.files[0])]),
        gauge("files_bytes", "Size of all files that are stored.", (), [((), found.files[1])]),
        gauge(
            "webhook_deliveries",
            "Deliveries of webhooks that are kept, by state.",
            ("state",),
            _or_none({(name,): number for name, number in found.deliveries.items()}, product(DeliveryState)),
        ),
        gauge("disk_bytes", "Size of the disk of the data folder.", (), [((), state.disk[0])]),
        gauge("disk_free_bytes", "What is free of the disk of the data folder.", (), [((), state.disk[1])]),
        gauge(
            "heartbeat_timestamp_seconds",
            "Unix time of the last sign of life of a process of the service.",
            ("process",),
            (((name,), at) for name, at in state.alive.items()),
        ),
    ]


def _of_jobs(state: State) -> list[Metric]:
    found = state.figures
    return [
        gauge(
            "jobs",
            "Jobs that are listed, by kind and state.",
            ("kind", "state"),
            _or_none(found.jobs, product((kind.name for kind in registered_kinds()), JobState)),
        ),
        gauge(
            "jobs_failed",
            "Failed jobs that are listed, by the code of their error.",
            ("kind", "code"),
            found.failed.items(),
        ),
        gauge(
            "jobs_oldest_queued_timestamp_seconds",
            "Unix time at which the oldest job was created that waits for a device.",
            ("kind",),
            (((kind,), at) for kind, at in found.oldest_queued.items()),
        ),
        gauge(
            "export_gates",
            "Exports that are listed and were measured: passed, failed, or forced (published all the same).",
            ("result",),
            _or_none(_by_result(found.export_gates), product(("passed", "failed", "forced"))),
        ),
    ]


def _by_result(gates: Mapping[tuple[bool, bool], int]) -> dict[tuple[str, ...], int]:
    """One that passed counts as passed, whether or not it was forced."""
    merged: dict[tuple[str, ...], int] = {}
    for (passed, forced), number in gates.items():
        key = ("passed" if passed else "forced" if forced else "failed",)
        merged[key] = merged.get(key, 0) + number
    return merged


def _or_none(
    found: Mapping[Any, int], expected: Iterable[tuple[str, ...]]
) -> Iterator[tuple[tuple[str, ...], int]]:
    """What was found, and 0 for what was expected and not found: Prometheus sees no growth of a series that appears."""
    yield from ({tuple(map(str, labels)): 0 for labels in expected} | dict(found)).items()


_PROGRESS = (
    ("job_step", "Steps that a running job has done.", "step"),
    ("job_steps", "Steps of a running job in all.", "total_steps"),
    ("job_train_loss", "Loss of the last step of a running job, in nats per trained token.", "train_loss"),
    ("job_valid_loss", "The last loss of a running job on held-out rows, in nats per token.", "valid_loss"),
    ("job_learning_rate", "Learning rate of the last step of a running job.", "learning_rate"),
    ("job_gradient_norm", "Norm of the gradient of the last step of a running job.", "grad_norm"),
    ("job_tokens_per_second", "Tokens that a running job trains in a second.", "tokens_per_second"),
    ("job_memory_bytes", "Peak memory of a running job: of its GPU, else resident.", "memory_bytes"),
    ("job_remaining_seconds", "Predicted time until the steps of a running job are done.", "eta_seconds"),
)


def _of_running_jobs(state: State) -> list[Metric]:
    running = state.figures.running

    def told(job: RunningJob, key: str) -> float | None:
        value = job.progress.get(key)
        return float(value) if isinstance(value, int | float) else None

    def key(job: RunningJob) -> tuple[str, str, str]:
        return job.id, job.kind, job.base

    return [
        *(
            gauge(name, help, _JOB, ((key(job), told(job, field)) for job in running))
            for name, help, field in _PROGRESS
        ),
        gauge(
            "job_step_duration_seconds",
            f"Mean time of the last {_STEPS} steps of a running job.",
            _JOB,
            ((key(job), state.step_seconds.get(job.id)) for job in running),
        ),
        gauge(
            "job_attempts",
            "How often the process of a running job has ended unexpectedly since its last new step.",
            _JOB,
            ((key(job), job.attempt) for job in running),
        ),
        gauge(
            "job_last_progress_timestamp_seconds",
            "Unix time of the last sign of progress of a running job.",
            _JOB,
            ((key(job), state.beats.get(job.id)) for job in running),
        ),
    ]


def _of_engines(found: Figures) -> list[Metric]:
    return [
        gauge(
            "engine_state",
            "1 for the state that an engine is in, 0 for the others.",
            ("engine", "state"),
            (
                ((engine.name, state.value), float(engine.state is state))
                for engine in found.engines
                for state in EngineState
            ),
        ),
        counter(
            "engine_starts",
            "How often an engine was started.",
            ("engine",),
            (((engine.name,), engine.run) for engine in found.engines),
        ),
    ]


def _of_adapters(state: State) -> list[Metric]:
    found, tally = state.figures, state.tally
    known = {engine.name for engine in found.engines}
    return [
        gauge(
            "models",
            "Adapters and full models of the registry, by state.",
            ("kind", "base", "state"),
            found.models.items(),
        ),
        gauge(
            "parity_verdicts",
            "Adapters that are listed, by the verdict of their last parity check.",
            ("verdict",),
            _or_none({(verdict,): number for verdict, number in found.parity.items()}, product(Verdict)),
        ),
        gauge(
            "adapters_resident",
            "Adapters in an engine, by state.",
            ("engine", "state"),
            found.resident.items(),
        ),
        counter(
            "adapter_changes",
            "Adapters that were loaded, could not be loaded, were unloaded, or were evicted to make room for another.",
            ("engine", "change"),
            (
                ((engine, change.value), tally.get(engine, {}).get(change, 0.0))
                for engine in sorted(known)
                for change in Change
            ),
        ),
        counter(
            "adapter_load_seconds",
            "Time that loads of adapters took; divide it by those loaded.",
            ("engine",),
            (((engine,), tally.get(engine, {}).get(LOAD_SECONDS, 0.0)) for engine in sorted(known)),
        ),
    ]


def _of_aliases(found: Figures, most: int) -> list[Metric]:
    # whatever changes is among the newest
    newest = sorted(found.aliases, key=lambda alias: -alias.updated_at)[:most]
    shown = {alias.label for alias in newest}
    return [
        gauge(
            "alias_version",
            "Version of an alias.",
            ("alias",),
            (((alias.label,), alias.version) for alias in newest),
        ),
        gauge(
            "alias_target_weight",
            "Weight of a target of an alias among its targets.",
            ("alias", "model"),
            (((alias.label, target.model), target.weight) for alias in newest for target in alias.targets),
        ),
        counter(
            "alias_changes",
            "Versions that aliases have had, by whether they were set, rolled back, or rolled back by their guard.",
            ("alias", "change"),
            _or_none(
                {key: number for key, number in found.changes.items() if key[0] in shown},
                product(shown, CHANGES),
            ),
        ),
        counter(
            "alias_gates",
            "New targets that an alias's requirement has let through: passed, or forced.",
            ("result",),
            _or_none(
                {("forced" if forced else "passed",): number for forced, number in found.alias_gates.items()},
                product(("passed", "forced")),
            ),
        ),
    ]
