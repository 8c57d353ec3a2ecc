"""Deadlines and tolerated failures of waits, and when a broken event stream is connected again."""

from __future__ import annotations

import sys
import time
from typing import TypeVar

from .._errors import (
    APIStatusError,
    DeploymentFailedError,
    JobCancelledError,
    JobFailedError,
    TunewrightError,
)
from ..types import DeploymentRecord, JobStatus, WorkRecord
from .progress import plain
from .retry import backoff, is_outage, is_retryable

J = TypeVar("J", bound=WorkRecord)

# The last request before a deadline may take at least this long.
LAST_REQUEST_SECONDS = 1.0


class Wait:
    """The deadline of one wait and the failed requests in a row. All times are in seconds.

    Failures that a restart of the server explains (connection errors, 408, 429, 502, 503, 504) are tolerated until
    the deadline, other retryable failures `max_retries` times in a row. `last_error` is the failure of the last
    request, None after a success.
    """

    def __init__(self, timeout: float | None, max_retries: int) -> None:
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._max_retries = max_retries
        self.failures = 0
        self.last_error: TunewrightError | None = None

    def request_seconds(self) -> float | None:
        """How long the next request may take; None without a deadline."""
        if self._deadline is None:
            return None
        return max(self._deadline - time.monotonic(), LAST_REQUEST_SECONDS)

    def succeeded(self) -> None:
        """Record a successful request."""
        self.failures = 0
        self.last_error = None

    def tolerates(self, error: TunewrightError) -> bool:
        """Record a failed request. False where the wait must end with this error."""
        if not is_outage(error) and (not is_retryable(error) or self.failures >= self._max_retries):
            return False
        self.failures += 1
        self.last_error = error
        return True

    def pause(self, seconds: float) -> float | None:
        """`seconds`, or less where the deadline comes first; None when it has passed."""
        if self._deadline is None:
            return seconds
        left = self._deadline - time.monotonic()
        return min(seconds, left) if left > 0 else None


class Outage:
    """How long an event stream has had no working connection, and when to connect again."""

    def __init__(self, limit: float) -> None:
        """`limit`: seconds after which to give up."""
        self._limit = limit
        self._since: float | None = None
        self._failures = 0

    def end(self) -> None:
        """Record that the connection works."""
        self._since = None
        self._failures = 0

    def next_delay(self) -> float | None:
        """Record a failure. Seconds until the next attempt, or None to give up."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        delay = backoff(self._failures)
        self._failures += 1
        return None if now - self._since + delay > self._limit else delay


def requested_delay(error: TunewrightError) -> float:
    """The seconds that the server's Retry-After asks for; 0 without one."""
    return (error.retry_after or 0.0) if isinstance(error, APIStatusError) else 0.0


def ended_job(job: J) -> J:
    """A job that has ended, if it succeeded. Raises JobFailedError or JobCancelledError."""
    if job.status == JobStatus.FAILED:
        raise JobFailedError((job.error.message if job.error else None) or f"{job.id} failed", job)
    if job.status == JobStatus.CANCELLED:
        raise JobCancelledError(f"{job.id} was cancelled", job)
    return job


def is_deployed(deployment: DeploymentRecord) -> bool:
    """Whether a deployment is ready. Raises DeploymentFailedError for one that failed or is being taken down."""
    if deployment.state in ("failed", "draining"):
        reason = deployment.reason or "it is being taken down"
        raise DeploymentFailedError(f"{deployment.model} is {deployment.state}: {reason}", deployment)
    return deployment.state == "ready"


def report_deployment(deployment: DeploymentRecord) -> None:
    """Write a deployment's state to stderr in one line."""
    reason = f": {deployment.reason}" if deployment.reason else ""
    print(plain(f"{deployment.model}  {deployment.state}{reason}"), file=sys.stderr, flush=True)
