"""Traces of jobs (`tunewright.tracing`): how long each phase and each attempt of a process took.

The phases are seen in the rounds of the scheduler, so their bounds are 0.2 s off at most; the beginning and the end of
a job, and the beginning of its first run, are those of the store. Nothing is stored here: of a job that a restarted
scheduler finds, the phase that it is in begins anew, but for a run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tunewright import tracing
from tunewright.jobs.folder import JobFolder
from tunewright.registry.workspace import Workspace
from tunewright.scheduler.processes import Exit
from tunewright.store.records import Job
from tunewright.store.states import JobPhase, JobState
from tunewright.store.store import Store
from tunewright.tracing import JobTrace

_UNFINISHED = tuple(state for state in JobState if not state.is_final)
_PREPARE, _QUEUED, _PAUSED, _RUN = "prepare", "queued", "paused", "run"


@dataclass
class _Open:
    """A job that has not ended."""

    trace: JobTrace
    phase: str = ""
    span: Any = None
    attempt: Any = None
    attempts: int = 0
    seen: set[str] = field(default_factory=set)


class JobTraces:
    """Does nothing while tracing is off."""

    def __init__(self, store: Store, workspace: Workspace) -> None:
        self._store = store
        self._workspace = workspace
        self._open: dict[str, _Open] = {}
        self.is_at_rest = True

    def tick(self) -> None:
        """See in which phases the jobs are."""
        if not tracing.is_on():
            return
        jobs = {job.id: job for job in self._store.latest(self._unfinished)}
        for job in jobs.values():
            self._is_in(job, phase_of(job))
        for id in [id for id in self._open if id not in jobs]:
            self._ended(id, self._store.jobs.get(id))

    def _unfinished(self) -> Sequence[Job]:
        return self._store.jobs.in_states(*_UNFINISHED)

    def started(self, job: Job, pid: int | None) -> None:
        """A process of the job was started."""
        one = self._is_in(job, _RUN) if tracing.is_on() else None
        if one is not None:
            self._end_attempt(one, None)
            one.attempts += 1
            told = {"tunewright.attempt": one.attempts, "process.pid": pid, "tunewright.device": job.device}
            one.attempt = one.trace.begin("attempt", time.time(), told, within=one.span)

    def exited(self, job: Job, how: Exit | None) -> None:
        """The process of the job has ended."""
        one = self._open.get(job.id)
        if one is not None:
            self._end_attempt(one, how)

    def stop(self) -> None:
        """The service stops: tell what has been until now."""
        for one in self._open.values():
            self._leave(one, time.time())
        self._open.clear()

    def _is_in(self, job: Job, phase: str) -> _Open | None:
        one = self._open.get(job.id)
        if one is None:
            trace = tracing.job(job.id)
            if trace is None:
                return None
            one = self._open[job.id] = _Open(trace)
            if phase in (_QUEUED, _RUN) and job.created_at > time.time() - 60 and not job.attempt:
                self._enter(one, _PREPARE, job.created_at)  # it was so short that no round has seen it
        if one.phase == phase:
            return one
        now = time.time()
        began = now
        if phase == _RUN and job.started_at is not None and _RUN not in one.seen:
            began = job.started_at
            if one.phase == _PREPARE:
                self._enter(one, _QUEUED, began)
        elif phase == _PREPARE and not one.seen:
            began = job.created_at
        self._enter(one, phase, began)
        return one

    def _enter(self, one: _Open, phase: str, at: float) -> None:
        self._leave(one, at)
        one.phase = phase
        one.seen.add(phase)
        one.span = one.trace.begin(phase, at, {})

    def _leave(self, one: _Open, at: float) -> None:
        self._end_attempt(one, None)
        if one.span is not None:
            one.trace.finish(one.span, at)
            one.span = None

    def _end_attempt(self, one: _Open, how: Exit | None) -> None:
        if one.attempt is None:
            return
        ended = how.description if how is not None else None
        failed = "process_ended" if how is not None and how.code not in (0, None) else None
        one.trace.finish(one.attempt, time.time(), {"tunewright.ended_with": ended}, failed)
        one.attempt = None

    def _ended(self, id: str, job: Job | None) -> None:
        """`job`: None where it was deleted."""
        one = self._open.pop(id)
        if job is None or not job.state.is_final:
            self._leave(one, time.time())
            return
        ended = job.finished_at or time.time()
        self._leave(one, ended)
        attributes = {
            "tunewright.job.id": job.id, "tunewright.job.kind": job.kind, "tunewright.job.state": job.state.value,
            "tunewright.base": job.base, "tunewright.attempts": one.attempts,
        }  # fmt: skip
        folder = JobFolder(self._workspace.job(job.pipeline or job.id))
        failed = job.error.code if job.error is not None else None
        one.trace.whole(job.created_at, ended, attributes, failed, folder.read_trace())


def phase_of(job: Job) -> str:
    """The name of the span that an unfinished job is in."""
    if job.state is JobState.VALIDATING_FILES:
        return _PREPARE
    if job.state in (JobState.QUEUED, JobState.PAUSED):
        return _QUEUED if job.state is JobState.QUEUED else _PAUSED
    return _RUN if job.phase is JobPhase.PREPARE else job.phase.value
