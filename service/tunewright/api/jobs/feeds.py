"""The newest events of jobs for those who listen to them: each job is polled once, however many listen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from tunewright.errors import TooManyRequests
from tunewright.store.jobs import JobStore
from tunewright.store.records import JobEvent

log = logging.getLogger("tunewright.api")

_POLL, _POLL_PER_JOB = 0.25, 0.01
"""Seconds between two looks at a job, and for each job that is listened to: at most 100 looks a second."""
_PAGE = 200
_KEPT = 1000
"""Newest events of a job that are kept in memory for listeners that are a little behind."""
_MOST = 256
"""Streams at a time."""


class Feed:
    """The newest events of one job. Used from one event loop only."""

    def __init__(self, feeds: Feeds, jobs: JobStore, job_id: str) -> None:
        self._feeds = feeds
        self._jobs = jobs
        self._job_id = job_id
        self._recent: list[JobEvent] = []
        self._before: str | object | None = _UNKNOWN
        """The id of the event before those in memory; None where they are all that the job has."""
        self.listeners = 0
        self.ended = False
        """The job has ended, and all of its events were seen."""
        self.failed = False
        """The events could not be read, and are not read any more."""
        self.changed = asyncio.Event()
        """Is set when there is something new; then another takes its place."""
        self._task = asyncio.get_running_loop().create_task(self._poll())

    def after(self, id: str | None) -> list[JobEvent] | None:
        """The events after the one with this id, or all; None where this is further back than the memory goes."""
        if id == self._before:
            return list(self._recent)
        for place in range(len(self._recent), 0, -1):
            if self._recent[place - 1].id == id:
                return self._recent[place:]
        return None

    async def read(self, id: str | None) -> Sequence[JobEvent]:
        """Events after the one with this id, oldest first, from memory or from the store: none where there are none
        yet, or none are known."""
        kept = self.after(id) if self._before is not _UNKNOWN else []
        if kept is not None:
            return kept
        found, _ = await asyncio.to_thread(
            self._jobs.events, self._job_id, after=id, limit=_PAGE, ascending=True
        )
        return found

    def leave(self) -> None:
        self.listeners -= 1
        self._feeds.open -= 1
        if not self.listeners:
            self._task.cancel()
            if self._feeds.by_job.get(self._job_id) is self:
                del self._feeds.by_job[self._job_id]

    async def _poll(self) -> None:
        try:
            newest, _ = await asyncio.to_thread(self._jobs.events, self._job_id, after=None, limit=_PAGE + 1)
            cursor = newest[0].id if newest else None
            self._before = newest[_PAGE].id if len(newest) > _PAGE else None
            self._keep(newest[:_PAGE][::-1])
            self._tell()
            while not self.ended:
                job = await asyncio.to_thread(self._jobs.get, self._job_id)
                found, more = await asyncio.to_thread(
                    self._jobs.events, self._job_id, after=cursor, limit=_PAGE, ascending=True
                )
                if found:
                    cursor = found[-1].id
                    self._keep(found)
                self.ended = job is None or (job.state.is_final and not found)
                if found or self.ended:
                    self._tell()
                if not more and not self.ended:
                    await asyncio.sleep(max(_POLL, _POLL_PER_JOB * len(self._feeds.by_job)))
        except Exception:  # for example a failure of the database
            log.exception("the events of %s cannot be read; their streams are cut off", self._job_id)
            self.failed = True
            self._tell()

    def _keep(self, found: Sequence[JobEvent]) -> None:
        self._recent.extend(found)
        if (surplus := len(self._recent) - _KEPT) > 0:
            self._before = self._recent[surplus - 1].id
            del self._recent[:surplus]

    def _tell(self) -> None:
        told, self.changed = self.changed, asyncio.Event()
        told.set()


_UNKNOWN = object()


class Feeds:
    """The feeds of all jobs that are listened to."""

    def __init__(self) -> None:
        self.by_job: dict[str, Feed] = {}
        self.open = 0
        """Number of listeners."""

    def join(self, jobs: JobStore, job_id: str) -> Feed:
        """The feed of a job, with one more listener, who calls `leave` in the end. Raises TooManyRequests."""
        if self.open >= _MOST:
            raise TooManyRequests(
                f"{_MOST} streams of events are open, which is the limit: close one, or read the events as pages.",
                code="too_many_streams",
                retry_after=10,
            )
        feed = self.by_job.get(job_id)
        if feed is None or feed.failed:
            feed = self.by_job[job_id] = Feed(self, jobs, job_id)
        feed.listeners += 1
        self.open += 1
        return feed
