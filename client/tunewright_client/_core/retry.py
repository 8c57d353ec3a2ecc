"""Which failures are retried, and after how many seconds."""

from __future__ import annotations

import random

import httpx2

from .._errors import APIConnectionError, APIStatusError, StreamInterruptedError, TunewrightError

# The first delay; each following one is twice as long.
BACKOFF_SECONDS = 0.5
BACKOFF_MAX_SECONDS = 8.0
# For a longer Retry-After the caller gets the error instead of a retry.
RETRY_AFTER_MAX_SECONDS = 60.0


def is_retryable(error: TunewrightError) -> bool:
    """Whether a failure is worth a retry: connection errors, 408, 429 and 5xx, unless the server's x-should-retry
    says otherwise. A request that could not be written at all is not."""
    if isinstance(error, APIStatusError):
        if error.should_retry is not None:
            return error.should_retry
        return error.status_code in (408, 429) or error.status_code >= 500
    if isinstance(error, APIConnectionError):
        cause = error.__cause__
        return isinstance(cause, httpx2.TransportError) and not isinstance(
            cause, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError
        )
    return isinstance(error, StreamInterruptedError)


def is_outage(error: TunewrightError) -> bool:
    """Whether a restart or an overload of the server explains a failure, so that it is worth more than a few
    retries. A 500 is not such a failure: the server may answer so for ever."""
    if isinstance(error, APIStatusError):
        return error.status_code in (408, 429, 502, 503, 504) and error.should_retry is not False
    return is_retryable(error)


def retry_delay(error: TunewrightError, attempt: int, max_retries: int) -> float | None:
    """Seconds until the attempt after `attempt` (the first one is 0), or None to raise the error."""
    if attempt >= max_retries or not is_retryable(error):
        return None
    requested = error.retry_after if isinstance(error, APIStatusError) else None
    if requested is None:
        return backoff(attempt)
    return requested if requested <= RETRY_AFTER_MAX_SECONDS else None


def backoff(attempt: int) -> float:
    """Exponential backoff with jitter: between half and all of 0.5, 1, 2, 4, 8, 8 ... seconds."""
    return min(BACKOFF_SECONDS * 2.0 ** min(attempt, 16), BACKOFF_MAX_SECONDS) * random.uniform(0.5, 1.0)
