"""Fine-tuning jobs: `client.jobs`, and the Job that knows its client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr

from .._core import endpoints, streams, wait
from .._core.create import create_job
from .._core.progress import ProgressReporter
from .._errors import TunewrightError
from ..types import Checkpoint, JobEvent, JobRecord, Tuning
from .driver import Stream
from .pages import Page

if TYPE_CHECKING:
    from .client import Tunewright


class Jobs:
    """`client.jobs`."""

    def __init__(self, client: Tunewright) -> None:
        self._client = client

    def create(
        self,
        model: str,
        training_file: str | Path,
        validation_file: str | Path | None = None,
        tuning: Mapping[str, Any] | Tuning | None = None,
        method: Mapping[str, Any] | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        suffix: str | None = None,
        seed: int | None = None,
        metadata: Mapping[str, str] | None = None,
        chat_template: str | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Start a fine-tuning job.

        - model: the base, or a fine-tuned model to go on from
        - training_file, validation_file: a file's id, or a pathlib.Path to a file, which is uploaded first
        - tuning: settings such as {"type": "lora", "rank": 16}; what is left out is chosen for you
        - method, hyperparameters: OpenAI's way to say it
        - suffix: part of the new model's name
        - idempotency_key: the same key gives the same job, however often this is called

        Raises BadRequestError for settings or files that cannot work, FileNotFoundError for a missing file.
        """
        return self._client._run(
            create_job(
                self._client._context,
                self._make,
                model=model,
                training_file=training_file,
                validation_file=validation_file,
                tuning=tuning,
                method=method,
                hyperparameters=hyperparameters,
                suffix=suffix,
                seed=seed,
                metadata=metadata,
                chat_template=chat_template,
                idempotency_key=idempotency_key,
            )
        )

    def list(self, after: str | None = None, limit: int | None = None) -> Page[Job]:
        """The jobs, newest first; `limit` is the size of a page."""
        return self._client._page(endpoints.list_jobs(self._make, after, limit))

    def retrieve(self, job_id: str) -> Job:
        """One job as it is now. Raises NotFoundError."""
        return self._client._fetch(endpoints.retrieve_job(self._make, job_id))

    def cancel(self, job_id: str) -> Job:
        """Stop a job for good. Raises BadRequestError for one that has ended."""
        return self._client._fetch(endpoints.act_on_job(self._make, job_id, "cancel"))

    def pause(self, job_id: str) -> Job:
        """Stop a job at a checkpoint, to be resumed; it is `pausing` until that is written."""
        return self._client._fetch(endpoints.act_on_job(self._make, job_id, "pause"))

    def resume(self, job_id: str) -> Job:
        """Let a paused job go on from its checkpoint."""
        return self._client._fetch(endpoints.act_on_job(self._make, job_id, "resume"))

    def events(self, job_id: str, after: str | None = None, limit: int | None = None) -> Page[JobEvent]:
        """What happened to a job, newest first; `after` goes on to older events."""
        return self._client._page(endpoints.list_events(job_id, after, limit))

    def stream_events(
        self, job_id: str, after: str | None = None, reconnect_timeout: float = 60.0
    ) -> Stream[JobEvent]:
        """A job's events as they happen, oldest first, from its first one or from the one after the id
        `after`; ends when the job does.

        A broken connection is made anew and goes on after the last event. Raises the failure when that does
        not work for `reconnect_timeout` seconds.
        """
        return self._client._stream(
            streams.job_events(self._client._context, job_id, after, reconnect_timeout)
        )

    def checkpoints(
        self, job_id: str, after: str | None = None, limit: int | None = None
    ) -> Page[Checkpoint]:
        """A job's checkpoints, newest first."""
        return self._client._page(endpoints.list_checkpoints(job_id, after, limit))

    def logs(self, job_id: str, tail: int | None = None) -> str:
        """What a job's trainer wrote; with `tail`, its last lines."""
        return self._client._fetch(endpoints.job_logs(job_id, tail))

    def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        poll_interval: float = 2.0,
        progress: bool = False,
        on_event: Callable[[JobEvent], None] | None = None,
    ) -> Job:
        """Wait until a job has succeeded, and return it.

        - timeout: seconds; None waits for as long as it takes, also for a server that is away
        - poll_interval: seconds between two looks
        - progress: show a bar on stderr, or a line now and then where stderr is no terminal
        - on_event: called with each of the job's events once, oldest first, from the job's first one

        Raises JobFailedError, JobCancelledError, WaitTimeoutError (the job goes on), NotFoundError. A restart
        of the server meanwhile is no error. A paused job is waited for until it is resumed or cancelled.
        """
        return self._client._run(
            wait.job_end(
                self._client._context,
                endpoints.retrieve_job(self._make, job_id),
                job_id,
                timeout=timeout,
                poll_interval=poll_interval,
                on_event=on_event,
                reporter=ProgressReporter() if progress else None,
            )
        )

    def _make(self, data: Any) -> Job:
        job = Job.model_validate(data)
        job._jobs = self
        return job


class Job(JobRecord):
    """A fine-tuning job as it was when it was read; its methods ask its client. A record does not change:
    `job = job.refresh()` reads a new one."""

    _jobs: Jobs | None = PrivateAttr(default=None)

    @property
    def _api(self) -> Jobs:
        if self._jobs is None:
            raise TunewrightError("this Job did not come from a client: use client.jobs with its id")
        return self._jobs

    def refresh(self) -> Job:
        """The job as it is now."""
        return self._api.retrieve(self.id)

    def cancel(self) -> Job:
        """See `client.jobs.cancel`."""
        return self._api.cancel(self.id)

    def pause(self) -> Job:
        """See `client.jobs.pause`."""
        return self._api.pause(self.id)

    def resume(self) -> Job:
        """See `client.jobs.resume`."""
        return self._api.resume(self.id)

    def events(self, after: str | None = None, limit: int | None = None) -> Page[JobEvent]:
        """See `client.jobs.events`."""
        return self._api.events(self.id, after, limit)

    def stream_events(self, after: str | None = None, reconnect_timeout: float = 60.0) -> Stream[JobEvent]:
        """See `client.jobs.stream_events`."""
        return self._api.stream_events(self.id, after, reconnect_timeout)

    def checkpoints(self, after: str | None = None, limit: int | None = None) -> Page[Checkpoint]:
        """See `client.jobs.checkpoints`."""
        return self._api.checkpoints(self.id, after, limit)

    def logs(self, tail: int | None = None) -> str:
        """See `client.jobs.logs`."""
        return self._api.logs(self.id, tail)

    def wait(
        self,
        *,
        timeout: float | None = None,
        poll_interval: float = 2.0,
        progress: bool = False,
        on_event: Callable[[JobEvent], None] | None = None,
    ) -> Job:
        """See `client.jobs.wait`."""
        return self._api.wait(
            self.id, timeout=timeout, poll_interval=poll_interval, progress=progress, on_event=on_event
        )
