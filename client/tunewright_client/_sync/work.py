"""What jobs of every kind have: the methods of `client.jobs` and `client.exports`, and those of a job that
knows its client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from pydantic import PrivateAttr

from .._core import endpoints, streams, wait
from .._core.create import create_job
from .._core.progress import ProgressReporter
from .._errors import TunewrightError
from ..types import JobEvent, WorkRecord
from .driver import Stream
from .pages import Page

if TYPE_CHECKING:
    from .client import Tunewright


class BoundRecord(WorkRecord):
    """A job, of whatever kind, as it was when it was read; its methods ask its client."""

    _work: Work[Any] | None = PrivateAttr(default=None)

    @property
    def _api(self) -> Work[Self]:
        if self._work is None:
            raise TunewrightError(
                f"this {type(self).__name__} did not come from a client: use the client's methods with its id"
            )
        return self._work

    def refresh(self) -> Self:
        """As it is now."""
        return self._api.retrieve(self.id)

    def cancel(self) -> Self:
        """See `cancel` of `client.jobs` and `client.exports`; the others are there too."""
        return self._api.cancel(self.id)

    def pause(self) -> Self:
        """See `client.jobs.pause`."""
        return self._api.pause(self.id)

    def resume(self) -> Self:
        """See `client.jobs.resume`."""
        return self._api.resume(self.id)

    def events(self, after: str | None = None, limit: int | None = None) -> Page[JobEvent]:
        """See `client.jobs.events`."""
        return self._api.events(self.id, after, limit)

    def stream_events(self, after: str | None = None, reconnect_timeout: float = 60.0) -> Stream[JobEvent]:
        """See `client.jobs.stream_events`."""
        return self._api.stream_events(self.id, after, reconnect_timeout)

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
    ) -> Self:
        """See `client.jobs.wait`."""
        return self._api.wait(
            self.id, timeout=timeout, poll_interval=poll_interval, progress=progress, on_event=on_event
        )


R = TypeVar("R", bound=BoundRecord)


class Work(Generic[R]):
    """The jobs of one kind. An export is a job too: `job_id` is its id."""

    _path: ClassVar[str]
    _record: type[R]

    def __init__(self, client: Tunewright) -> None:
        self._client = client

    def list(self, after: str | None = None, limit: int | None = None) -> Page[R]:
        """All of them, newest first; `limit` is the size of a page."""
        return self._client._page(endpoints.list_jobs(self._path, self._make, after, limit))

    def retrieve(self, job_id: str) -> R:
        """One as it is now. Raises NotFoundError."""
        return self._client._fetch(endpoints.retrieve_job(self._path, self._make, job_id))

    def cancel(self, job_id: str) -> R:
        """Stop it for good. Raises BadRequestError for one that has ended."""
        return self._act(job_id, "cancel")

    def pause(self, job_id: str) -> R:
        """Have it save what is done and free its device, to be resumed; it is `pausing` until that is so."""
        return self._act(job_id, "pause")

    def resume(self, job_id: str) -> R:
        """Let a paused one go on from what is done."""
        return self._act(job_id, "resume")

    def events(self, job_id: str, after: str | None = None, limit: int | None = None) -> Page[JobEvent]:
        """What happened to it, newest first; `after` goes on to older events."""
        return self._client._page(endpoints.list_events(self._path, job_id, after, limit))

    def stream_events(
        self, job_id: str, after: str | None = None, reconnect_timeout: float = 60.0
    ) -> Stream[JobEvent]:
        """Its events as they happen, oldest first, from its first one or from the one after the id `after`;
        ends when the job does.

        A broken connection is made anew and goes on after the last event. Raises the failure when that does
        not work for `reconnect_timeout` seconds.
        """
        return self._client._stream(
            streams.job_events(self._client._context, self._path, job_id, after, reconnect_timeout)
        )

    def logs(self, job_id: str, tail: int | None = None) -> str:
        """What its process wrote; with `tail`, the last lines."""
        return self._client._fetch(endpoints.job_logs(self._path, job_id, tail))

    def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        poll_interval: float = 2.0,
        progress: bool = False,
        on_event: Callable[[JobEvent], None] | None = None,
    ) -> R:
        """Wait until it has succeeded, and return it.

        - timeout: seconds; None waits for as long as it takes, also for a server that is away
        - poll_interval: seconds between two looks
        - progress: show a bar on stderr, or a line now and then where stderr is no terminal
        - on_event: called with each of its events once, oldest first, from the first one

        Raises JobFailedError, whose message says why, JobCancelledError, WaitTimeoutError (it goes on in the
        server), NotFoundError. A restart of the server meanwhile is no error. What is paused is waited for
        until it is resumed or cancelled.
        """
        return self._client._run(
            wait.job_end(
                self._client._context,
                self._path,
                self._make,
                job_id,
                timeout=timeout,
                poll_interval=poll_interval,
                on_event=on_event,
                reporter=ProgressReporter() if progress else None,
            )
        )

    def _create(
        self, files: Mapping[str, str | Path | None], idempotency_key: str | None, **fields: Any
    ) -> R:
        return self._client._run(
            create_job(
                self._client._context,
                self._path,
                self._make,
                files=files,
                idempotency_key=idempotency_key,
                **fields,
            )
        )

    def _act(self, job_id: str, action: str) -> R:
        return self._client._fetch(endpoints.act_on_job(self._path, self._make, job_id, action))

    def _make(self, data: Any) -> R:
        record = self._record.model_validate(data)
        record._work = self
        return record
