"""From a submitted job to its product: validate, claim, launch, watch, publish."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor

from sqlalchemy.exc import DatabaseError

from tunewright.config import Settings, child_environment
from tunewright.errors import InvalidAdapter, StorageFull
from tunewright.jobs.folder import DISK_FULL, STOPPED_RESUMABLE, JobFolder
from tunewright.registry.workspace import Workspace
from tunewright.scheduler.engines import EngineKeeper
from tunewright.scheduler.exports import Exports
from tunewright.scheduler.fine_tuning import FineTuning
from tunewright.scheduler.reports import exit_words, hint, last_line, take_in_events
from tunewright.scheduler.work import JobRefused, Work
from tunewright.store.records import Job
from tunewright.store.states import JobKind, JobState
from tunewright.store.store import Store
from tunewright.supervisor.process import ProcessGroup

log = logging.getLogger("tunewright.scheduler")

MAX_ATTEMPTS = 3
"""Starts of a process that end before our eyes without a new step in between, after which the job fails."""
_PUBLISH_AGAIN_AFTER = _VALIDATE_AGAIN_AFTER = 10.0
_LAST_WORDS = 2.0
"""Seconds for a process that hangs to write down where."""


class JobRunner:
    """Moves jobs along. State lives in the store and in job folders; what is held here can be lost."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        workspace: Workspace,
        engines: EngineKeeper,
        lifeline: int,
        devices: list[str],
        lent: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """`lent`: devices that somebody else uses just now."""
        self._settings = settings
        self._store = store
        self._workspace = workspace
        self._engines = engines
        self._lifeline = lifeline
        self._devices = devices
        self._lent = lent
        self._work: dict[JobKind, Work] = {
            JobKind.FINE_TUNING: FineTuning(settings, store, workspace, on_gpu=devices[0] != "cpu"),
            JobKind.EXPORT: Exports(settings, store, workspace),
        }
        self._groups: dict[str, ProcessGroup] = {}
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="jobs")
        self._validating: dict[str, Future[None]] = {}
        self._validate_at: dict[str, float] = {}
        self._publishing: dict[str, Future[None]] = {}
        self._publish_at: dict[str, float] = {}
        self._beats: dict[str, tuple[float, float]] = {}
        self._fail_without_base()

    def _fail_without_base(self) -> None:
        """Jobs of an earlier start on a base that is no longer named would wait for ever."""
        named = self._engines.names()
        for job in self._store.jobs.in_states(*(state for state in JobState if not state.is_final)):
            if job.base not in named and job.state is not JobState.PAUSED:
                self._store.jobs.fail(
                    job.id,
                    code="base_not_served",
                    message=f"the service was started without its base {job.base}, and that is not deployed",
                )

    def tick(self) -> None:
        self._validate_new()
        failed: Exception | None = None
        for job in self._store.jobs.on_devices():
            try:
                self._watch(job)
            except (
                OSError,
                StorageFull,
            ) as error:  # a full disk: its next round is tried, and the others go on
                failed = error
        if failed is not None:
            raise failed
        if not self._store.jobs.in_states(JobState.QUEUED):
            return
        lent = self._lent()
        for device in reversed(self._devices):  # engines fill devices from the front
            if device in lent:
                continue
            claimed = self._store.jobs.claim(device, self._engines.bases_here())
            if claimed is not None:
                self._launch(claimed)

    def stop(self, grace: float) -> None:
        """Trainers save a checkpoint and end; their jobs stay in the store and go on at the next start."""
        groups = [group for group in self._groups.values() if group.is_alive()]
        for group in groups:
            group.terminate()
        deadline = time.monotonic() + grace
        for group in groups:
            group.wait(max(0.0, deadline - time.monotonic()))
        for job in self._store.jobs.on_devices():
            group_or_none = self._groups.pop(job.id, None)
            if group_or_none is not None:
                group_or_none.end()
            take_in_events(self._store, job, self._folder(job))
            if self._folder(job).read_outcome() is not None:
                continue
            if job.state is JobState.PAUSING:
                self._store.jobs.paused(job.id)
            elif job.state is JobState.RUNNING:
                self._store.jobs.requeue(job.id, "The service stops; the job goes on when it starts again")
        self._threads.shutdown(wait=False, cancel_futures=True)

    # validating_files -> queued

    def _validate_new(self) -> None:
        for job in self._store.jobs.in_states(JobState.VALIDATING_FILES):
            may_begin = time.monotonic() >= self._validate_at.get(job.id, 0.0)
            if may_begin and job.id not in self._validating and self._engines.base(job.base) is not None:
                self._validating[job.id] = self._threads.submit(self._validate, job)
        for id, future in list(self._validating.items()):
            if future.done():
                del self._validating[id]
                self._validate_at.pop(id, None)
                if (error := future.exception()) is not None:
                    log.error("validating %s: %r", id, error)
                    if isinstance(error, StorageFull):  # nothing is wrong with the job
                        self._validate_at[id] = time.monotonic() + _VALIDATE_AGAIN_AFTER
                        continue
                    self._store.jobs.fail(
                        id, code="internal_error", message=f"validation broke down: {error!r}"
                    )

    def _validate(self, job: Job) -> None:
        base = self._engines.base(job.base)
        assert base is not None
        try:
            resolved, summary = self._work[job.kind].validate(job, base)
        except JobRefused as error:
            self._store.jobs.fail(job.id, code=error.code, message=str(error), param=error.param)
            return
        self._store.jobs.mark_valid(job.id, resolved, f"{summary}; moving job to queued state")

    # queued -> running

    def _launch(self, job: Job) -> None:
        """Start its trainer, on a folder that may hold an earlier run's checkpoints."""
        base = self._engines.base(job.base)
        assert base is not None, "only jobs on bases that are here are claimed"
        folder = self._folder(job)
        folder.write_spec(self._work[job.kind].spec(job, base))
        self._start_process(job, folder)

    def _start_process(self, job: Job, folder: JobFolder, *, counts: bool = True) -> None:
        assert job.device is not None
        if counts:
            self._store.jobs.count_attempt(job.id)
        self._store.jobs.rewind_events(job.id, folder.events_size())
        folder.beat()
        extra: dict[str, str] = {}
        if job.device.startswith("cuda:"):
            extra["CUDA_VISIBLE_DEVICES"] = job.device.removeprefix("cuda:")
        with folder.log_file.open("ab") as output:
            self._groups[job.id] = ProcessGroup.start(
                [sys.executable, "-m", self._work[job.kind].module, str(folder.path)],
                record_path=folder.process_file,
                environment=child_environment(extra),
                lifeline=self._lifeline,
                output=output,
                title=_title(job),
            )
        log.info("job %s trains on %s (pid %s)", job.id, job.device, self._groups[job.id].pid)

    # running -> an end

    def _watch(self, job: Job) -> None:
        """Look at a job that holds a device: take in what its trainer wrote, and see whether it has ended."""
        folder = self._folder(job)
        group = self._groups.get(job.id)
        if group is None and (group := ProcessGroup.adopt(folder.process_file)) is not None:
            self._groups[job.id] = group
        if job.state.is_final:
            publishing = self._publishing.get(job.id)
            if publishing is None or publishing.done():
                self._publishing.pop(job.id, None)
                self._end(job)
            return
        alive = group is not None and group.is_alive()
        take_in_events(self._store, job, folder)
        hung = False
        if group is not None and alive:
            group.keep_watched(self._lifeline, _title(job))
            if job.state is JobState.PAUSING:
                group.terminate()  # it saves after the step under way; asking again does no harm
            hung = self._hangs(job, folder)
            if not hung:
                return
            group.send(signal.SIGABRT)
            group.wait(_LAST_WORDS)
        if job.id in self._publishing:
            self._finish_publishing(job)
            return
        how = None
        if group is not None:
            how = exit_words(group.exit_code)
            if hung:
                how = f"no sign of progress for {self._settings.step_timeout:.0f} s"
            if group.exit_code == DISK_FULL:
                self._fail_for_want_of_space(job, folder)
                return
            stopped = group.exit_code == STOPPED_RESUMABLE
            group.end()
            del self._groups[job.id]
            if stopped and job.state is JobState.RUNNING:
                self._store.jobs.requeue(job.id, "Stopped with a checkpoint; waiting to go on")
                return
        outcome = folder.read_outcome()
        if outcome is None:
            process = self._work[job.kind].process
            self._came_to_nothing(job, folder, how, f"{process}_hung" if hung else f"{process}_crashed")
        elif outcome.status == "failed":
            self._store.jobs.fail(
                job.id,
                code=outcome.error_code or "job_failed",
                message=outcome.error_message or "unknown",
                report=outcome.report,
            )
        elif self._store.models.made_by(job.id):
            self._end(job)  # the verdict on its adapter ends it (scheduler.parity)
        elif time.monotonic() >= self._publish_at.get(job.id, 0.0):
            base = self._engines.base(job.base)
            if base is not None:
                self._publishing[job.id] = self._threads.submit(
                    self._work[job.kind].publish, job, base, folder
                )

    def _hangs(self, job: Job, folder: JobFolder) -> bool:
        """Whether its trainer gave no sign of progress for too long, by our clock: the system's may be set."""
        beat, now = folder.last_beat(), time.monotonic()
        last, seen_at = self._beats.get(job.id, (None, now))
        if beat != last:
            self._beats[job.id] = (beat, now)
            return False
        return now - seen_at > self._settings.step_timeout

    def _finish_publishing(self, job: Job) -> None:
        future = self._publishing[job.id]
        if not future.done():
            return
        del self._publishing[job.id]
        error = future.exception()
        if error is None:
            return
        log.error("publishing %s: %r", job.id, error)
        # A full disk, say: what was trained is not thrown away.
        if isinstance(error, OSError | DatabaseError | StorageFull):
            is_first = job.id not in self._publish_at
            self._publish_at[job.id] = time.monotonic() + _PUBLISH_AGAIN_AFTER
            if is_first:
                self._warn(job, f"Its product could not be published yet: {error}; trying again")
            return
        code = "adapter_invalid" if isinstance(error, InvalidAdapter) else "internal_error"
        self._store.jobs.fail(job.id, code=code, message=f"its product could not be published: {error}")

    def _fail_for_want_of_space(self, job: Job, folder: JobFolder) -> None:
        """First make room: where the database is on the same disk, not even this could be written down."""
        folder.remove_products()
        self._store.jobs.fail(
            job.id,
            code="disk_full",
            message=f"the disk is full: the {self._work[job.kind].process} could not write to {folder.path}. Free some "
            "space there, and create the job again.",
        )

    def _came_to_nothing(self, job: Job, folder: JobFolder, how: str | None, code: str) -> None:
        """Its process ended without a result: start it again, unless it does so time after time.

        `how` it ended is None where nobody saw it: the service was gone too, and that is no fault of the job.
        """
        if job.state is JobState.PAUSING:
            self._store.jobs.paused(job.id)
            return
        current = self._store.jobs.get(job.id)
        if current is None or current.state is not JobState.RUNNING:
            return
        if job.device not in self._devices:
            self._store.jobs.requeue(job.id, f"The device {job.device} is gone; waiting for another")
            return
        if not folder.spec_file.exists():  # there was no room for it
            if self._engines.base(job.base) is not None:
                self._launch(job)
            return
        if how is None:
            self._start_process(job, folder, counts=False)
            return
        work = self._work[job.kind]
        if current.attempt >= MAX_ATTEMPTS:
            self._store.jobs.fail(
                job.id,
                code=code,
                message=f"its {work.process} ended {current.attempt} times without a new step, last with "
                f"{how}: {last_line(folder.log_file)} (GET {work.path}/{job.id}/logs has the rest)"
                f"{hint(how, work.on_kill)}",
            )
            return
        self._warn(job, f"The {work.process} ended with {how}; starting it again from {work.saves}")
        self._start_process(job, folder)

    def _warn(self, job: Job, text: str) -> None:
        self._store.jobs.add_event(job.id, {"level": "warn", "type": "message", "message": text})

    def _end(self, job: Job) -> None:
        """A job whose training is over lets go of its device, its process and what only training needs."""
        group = self._groups.pop(job.id, None)
        if group is not None:
            group.end()
        for kept in (self._beats, self._publish_at):
            kept.pop(job.id, None)
        folder = self._folder(job)
        take_in_events(self._store, job, folder)
        folder.remove_products()
        self._store.jobs.release(job.id)

    def _folder(self, job: Job) -> JobFolder:
        return JobFolder(self._workspace.job(job.id))


def _title(job: Job) -> str:
    return f"tunewright: lifeline of trainer {job.id}"
