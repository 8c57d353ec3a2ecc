"""Takes jobs from submission to their product: one handler for each phase of a job."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial

from sqlalchemy.exc import DatabaseError

from tunewright.config import Settings, child_environment
from tunewright.errors import InvalidAdapter
from tunewright.jobs.folder import DISK_FULL, STOPPED_RESUMABLE, JobFolder
from tunewright.jobs.kinds import NO_BASE, JobError, registered_kinds
from tunewright.kinds import kind_of
from tunewright.kinds.kind import WITHOUT_BASE, JobRefused, Service
from tunewright.logs import audit, logged_with
from tunewright.registry.bases import BaseInfo
from tunewright.registry.workspace import Workspace
from tunewright.scheduler.background import Background
from tunewright.scheduler.devices import CPU, Devices, visible_to
from tunewright.scheduler.engines import EngineKeeper
from tunewright.scheduler.events import take_in_events
from tunewright.scheduler.fork_server import ForkServer
from tunewright.scheduler.inputs import InputFiles, fetch_inputs
from tunewright.scheduler.job_traces import JobTraces
from tunewright.scheduler.processes import ChildProcess, Exit, last_line, out_of_memory_hint, stop_all
from tunewright.scheduler.steps import advance, waits
from tunewright.scheduler.temporary import is_temporary
from tunewright.store.audit import Audited
from tunewright.store.records import Job
from tunewright.store.states import JobPhase, JobState
from tunewright.store.store import Store

log = logging.getLogger("tunewright.scheduler")

MAX_ATTEMPTS = 3
"""Starts of a process, each seen to end without a new step, after which the job fails."""
_PUBLISH_AGAIN_AFTER = _VALIDATE_AGAIN_AFTER = 10.0
"""Seconds."""


class JobRunner:
    """Runs jobs. Their state is in the store and in job folders; nothing is lost with this object."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        workspace: Workspace,
        engines: EngineKeeper,
        lifeline: int,
        devices: Devices,
        forks: ForkServer,
        traces: JobTraces | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._workspace = workspace
        self._engines = engines
        self._lifeline = lifeline
        self._devices = devices
        self._forks = forks
        self._traces = traces or JobTraces(store, workspace)
        self._service = Service(settings, store, workspace, on_gpu=devices.on_gpu, devices=devices.names)
        self._background, self._inputs = Background(2, "jobs"), InputFiles(self._workspace)
        self.processes: dict[str, ChildProcess] = {}
        self.is_at_rest = False
        """Whether the last round found no job that runs or waits."""
        self._handlers: dict[JobPhase, Callable[[Job], None]] = {
            JobPhase.PREPARE: self._prepare,
            JobPhase.RUN: self._run,
            JobPhase.PUBLISH: self._publish,
            JobPhase.CHECK: self._release,  # the verdict ends the job (`scheduler.parity`)
            JobPhase.EVALUATE: self._release,  # the evaluations end it (`Kind.evaluate`)
        }
        self._fail_without_base()
        for job in store.jobs.on_devices():
            store.jobs.restart_clock(job.id, self._folder(job).last_beat())

    def _fail_without_base(self) -> None:
        """Fail jobs on a base that the service was started without: they would wait for ever."""
        named = self._engines.names()
        for job in self._store.jobs.in_states(*(state for state in JobState if not state.is_final)):
            waits = job.state is JobState.PAUSED or job.phase is JobPhase.EVALUATE
            if job.base not in (NO_BASE, *named) and not waits:
                text = f"the service was started without its base {job.base}, and that is not deployed"
                self._store.jobs.fail(job.id, JobError(code="base_not_served", message=text))

    def tick(self) -> None:
        """One round over all jobs. What handling one of them raises, where the database cannot be used or a disk is
        full, is raised after all others were handled: the next round tries again."""
        failed: Exception | None = None
        self.is_at_rest = False
        active = self._store.latest(self._store.jobs.active)
        self._background.keep_only({job.id for job in active})
        for job in active:
            handle = self._release if job.state.is_final else self._handlers[job.phase]
            try:
                with logged_with(job_id=job.id):
                    handle(job)
                    self._evaluate(job)
            except Exception as error:  # it is no reason to leave the other jobs
                failed = failed or error
        queued = [job for job in self._store.latest(self._store.jobs.queued) if self._is_possible(job)]
        self.is_at_rest = not active and not queued
        if queued and all(map(self._can_start, queued)):
            for devices, bases, kinds in self._free_places():
                while (claimed := self._store.jobs.claim(devices, bases, kinds)) is not None:
                    with logged_with(job_id=claimed.id):
                        self._launch(claimed)
        if failed is not None:
            raise failed

    def _is_possible(self, job: Job) -> bool:
        """Whether the machine has as many GPUs as the job needs; where it has lost some, the job fails, since it would
        hold up all others."""
        needed = kind_of(job.kind).devices_of(job.resolved)
        most = len(self._devices.names) if self._devices.on_gpu else self._settings.jobs.cpu_processes
        if needed > most:
            text = f"it needs {needed} GPUs, of which this machine has fewer now"
            self._store.jobs.fail(job.id, JobError(code="not_enough_gpus", message=text))
        return needed <= most

    def _free_places(self) -> Iterator[tuple[str | Sequence[str], list[str], list[str]]]:
        """The devices, and the bases and kinds whose jobs may claim them: those that need no base run on the CPU, or in
        places of their kind."""
        bases = self._engines.available_bases()
        kinds = registered_kinds()
        shared = [kind.name for kind in kinds if kind.own_places is None]
        if self._devices.on_gpu:
            yield self._devices.for_jobs(), bases, shared
            yield CPU, [NO_BASE], shared
        else:
            yield CPU, [*bases, NO_BASE], shared
        for kind in kinds:
            if kind.own_places is not None:
                yield kind.places, [NO_BASE], [kind.name]

    def _base(self, job: Job) -> BaseInfo | None:
        """The base of a job; None until its files were found."""
        return self._engines.base(job.base) if kind_of(job.kind).needs_base else WITHOUT_BASE

    def stop(self, grace: float) -> None:
        """Have processes save their progress and end; their jobs stay in the store and continue at the next start."""
        stop_all(list(self.processes.values()), grace)
        self._background.stop()
        for process in self.processes.values():
            process.end()
        self.processes.clear()
        try:
            for job in self._store.jobs.on_devices():
                self._stopped(job)
        except Exception as error:  # the engines are to be stopped too; the next start finds the ends
            log.warning("the jobs were stopped, which could not be stored: %s", error)

    def _stopped(self, job: Job) -> None:
        folder = self._folder(job)
        take_in_events(self._store, job, folder)
        if folder.read_outcome() is not None:
            return
        if job.state is JobState.PAUSING:
            self._store.jobs.paused(job.id)
        elif job.state is JobState.RUNNING:
            self._store.jobs.requeue(job.id, "The service stops; the job continues when it starts again")

    # prepare

    def _prepare(self, job: Job) -> None:
        """Check the job's inputs, in a thread, once its base is available."""
        if waits(job):
            advance(self._store, job)
            return
        done = self._background.collect(job.id)
        if done is not None:
            self._prepared(job, done)
        elif (base := self._base(job)) is not None:
            self._can_start(job)  # what it needs is prepared beside the validation
            self._background.start(job.id, partial(self._validate, job, base))

    def _validate(self, job: Job, base: BaseInfo) -> None:
        fetch_inputs(self._workspace, job)
        try:
            found = kind_of(job.kind).validate(self._service, job, base)
        except JobRefused as refusal:
            error = JobError(code=refusal.code, message=str(refusal), param=refusal.param)
            report = refusal.report.model_dump(mode="json") if refusal.report is not None else None
            self._store.jobs.fail(job.id, error, report=report)
            return
        resolved = found.resolved.model_dump(mode="json") if found.resolved is not None else None
        self._store.jobs.mark_valid(job.id, resolved, found.summary, found.warnings)

    def _prepared(self, job: Job, done: Future[None]) -> None:
        error = done.exception()
        if error is None:
            self._background.forget(job.id)
            return
        log.error("validating %s: %r", job.id, error)
        if is_temporary(error):
            self._background.postpone(job.id, _VALIDATE_AGAIN_AFTER)
            return
        text = f"validation failed unexpectedly: {error!r}"
        self._store.jobs.fail(job.id, JobError(code="internal_error", message=text))

    # run

    def _can_start(self, job: Job) -> bool:
        """Whether the process can be started now; False while its files are fetched, or the fork server imports."""
        return self._inputs.of(job) and (not kind_of(job.kind).imports_torch or self._forks.prepare())

    def _launch(self, job: Job) -> None:
        """Start the process of a claimed job, in a folder that may hold the checkpoints of an earlier run."""
        base = self._base(job)
        assert base is not None, "only jobs on available bases are claimed"
        folder = self._folder(job)
        folder.write_spec(kind_of(job.kind).spec(self._service, job, base))
        self._start_process(job, folder)

    def _start_process(self, job: Job, folder: JobFolder, *, counts: bool = True) -> None:
        assert job.device is not None, "its claim gave it one"
        kind = kind_of(job.kind)
        if counts:
            self._store.jobs.count_attempt(job.id)
        self._store.jobs.rewind_events(job.id, folder.events_size())
        folder.beat()
        process = self.processes[job.id] = ChildProcess.start(
            [sys.executable, "-m", kind.module, str(folder.path)],
            record=folder.process_file,
            log_file=folder.log_file,
            environment=child_environment(
                (visible_to(*job.devices) if job.device != CPU else {}) | kind.environment(self._service, job)
            ),
            lifeline=self._lifeline,
            name=_process_name(job),
            append=True,
            launch=self._forks.launch if kind.imports_torch else None,
        )
        devices = ", ".join(job.devices)
        self._traces.started(job, process.pid)
        log.info("job %s runs on %s (pid %s)", job.id, devices, process.pid)
        audit("job_started", job=job.id, kind=job.kind, device=devices, pid=process.pid)
        done = {"kind": job.kind, "device": devices}
        try:
            started = Audited("job.started", job.project, job.api_key_id or "", resource=job.id, details=done)
            self._store.audit.add([started])
        except Exception as error:  # for example a full disk; the line of the log is there
            log.warning("the start of job %s is missing in the audit log: %s", job.id, error)

    def _run(self, job: Job) -> None:
        """Store the events that the job's process wrote, and see whether it has ended or hangs."""
        folder = self._folder(job)
        process = self._process_of(job, folder)
        take_in_events(self._store, job, folder)
        if process is not None and process.is_alive():
            if job.state is JobState.PAUSING:
                process.terminate()  # it saves a checkpoint after the current step
            kind_of(job.kind).tend(self._service, job, folder)
            if process.silent_for(folder.last_beat()) <= self._settings.jobs.step_timeout:
                return
            process.abort(self._settings.jobs.step_timeout)
        how = process.exit() if process is not None else None
        self._traces.exited(job, how)
        if how is not None and how.code == DISK_FULL:
            self._fail_for_full_disk(job, folder)
            return
        if process is not None:
            process.end()
            del self.processes[job.id]
        self._ended(job, folder, how)

    def _process_of(self, job: Job, folder: JobFolder) -> ChildProcess | None:
        """The job's process, which an earlier scheduler may have started."""
        process = self.processes.get(job.id)
        if process is None:
            at, name = folder.log_file, _process_name(job)
            process = ChildProcess.adopt(folder.process_file, log_file=at, lifeline=self._lifeline, name=name)
            if process is not None:
                self.processes[job.id] = process
        return process

    def _ended(self, job: Job, folder: JobFolder, how: Exit | None) -> None:
        """Decide how the job continues after its process has ended. `how` is None where the end was not observed, since
        the service was not running either."""
        if how is not None and how.code == STOPPED_RESUMABLE and job.state is JobState.RUNNING:
            self._store.jobs.requeue(job.id, "Stopped with a checkpoint; waiting to go on")
            return
        outcome = folder.read_outcome()
        if outcome is None:
            self._start_again(job, folder, how)
        elif outcome.status == "failed":
            again = kind_of(job.kind).after_failure(job, outcome) if job.state is JobState.RUNNING else None
            if again is not None:
                folder.result_file.unlink()  # first: without it the job is started again whatever happens
                resolved, text = again
                self._store.jobs.requeue(job.id, text, resolved)
                return
            error = JobError(
                code=outcome.error_code or "job_failed", message=outcome.error_message or "unknown"
            )
            self._store.jobs.fail(job.id, error, report=outcome.report)
        else:
            self._store.jobs.set_phase(job.id, JobPhase.PUBLISH)

    def _start_again(self, job: Job, folder: JobFolder, how: Exit | None) -> None:
        """Start a process that left no result again, unless that has happened too many times in a row."""
        if job.state is JobState.PAUSING:
            self._store.jobs.paused(job.id)
            return
        current = self._store.jobs.get(job.id)
        if current is None or current.state is not JobState.RUNNING:
            return
        kind = kind_of(job.kind)
        if gone := [device for device in job.devices if not self._devices.has(device)]:
            self._store.jobs.requeue(job.id, f"The device {', '.join(gone)} is gone; waiting for another")
        elif not folder.spec_file.exists():  # the disk was full when it was written
            if self._base(job) is not None:
                self._launch(job)
        elif how is None:  # no fault of the job
            self._start_process(job, folder, counts=False)
        elif current.attempt >= MAX_ATTEMPTS:
            what = "hung" if how.silent_seconds is not None else "crashed"
            text = (
                f"its {kind.process} ended {current.attempt} times without a new step, last with {how.description}: "
                f"{last_line(folder.log_file)} (GET {kind.path}/{job.id}/logs has the rest)"
                f"{out_of_memory_hint(how.description, kind.on_kill)}"
            )
            self._store.jobs.fail(job.id, JobError(code=f"{kind.process}_{what}", message=text))
        else:
            self._warn(
                job, f"The {kind.process} ended with {how.description}; starting it again from {kind.saves}"
            )
            self._start_process(job, folder)

    def _fail_for_full_disk(self, job: Job, folder: JobFolder) -> None:
        """Fail the job, after making room: where the database is on the same disk, it could not store the failure."""
        folder.remove_products()
        text = (
            f"the disk is full: the {kind_of(job.kind).process} could not write to {folder.path}. Free some space "
            "there, and create the job again."
        )
        self._store.jobs.fail(job.id, JobError(code="disk_full", message=text))

    # publish

    def _publish(self, job: Job) -> None:
        """List the product, in a thread, once the base is available."""
        done = self._background.collect(job.id)
        if done is not None:
            self._published(job, done)
        elif (base := self._base(job)) is not None:
            kind, folder = kind_of(job.kind), self._folder(job)
            self._background.start(job.id, partial(kind.publish, self._service, job, base, folder))

    def _published(self, job: Job, done: Future[None]) -> None:
        error = done.exception()
        if error is None:
            return
        log.error("publishing %s: %r", job.id, error)
        if isinstance(error, OSError | DatabaseError) or is_temporary(error):  # the product is kept
            if self._background.postpone(job.id, _PUBLISH_AGAIN_AFTER):
                self._warn(job, f"Its product could not be published yet: {error}; trying again")
            return
        code = "adapter_invalid" if isinstance(error, InvalidAdapter) else "internal_error"
        text = f"its product could not be published: {error}"
        self._store.jobs.fail(job.id, JobError(code=code, message=text))

    # the end

    def _evaluate(self, job: Job) -> None:
        """Go on with the evaluations of its product that the job has asked for."""
        kind = kind_of(job.kind)
        if kind.is_evaluated(job.request) and not job.state.is_final:
            kind.evaluate(self._service, job)

    def _release(self, job: Job) -> None:
        """Free the devices of a job whose process is no longer needed, end that process, and remove its products from
        the job folder."""
        if self._background.is_running(job.id) or not (job.devices or job.id in self.processes):
            return
        self._background.forget(job.id)
        folder = self._folder(job)
        process = self._process_of(job, folder)
        if process is not None:
            process.end()
            del self.processes[job.id]
        take_in_events(self._store, job, folder)
        folder.remove_products()
        self._store.jobs.release(job.id)

    def _warn(self, job: Job, text: str) -> None:
        self._store.jobs.add_event(job, {"level": "warn", "type": "message", "message": text})

    def _folder(self, job: Job) -> JobFolder:
        return JobFolder(self._workspace.job(job.id))


def _process_name(job: Job) -> str:
    return f"{kind_of(job.kind).process} {job.id}"
