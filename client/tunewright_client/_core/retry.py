"""Which failures are tried again, and after how long."""

from __future__ import annotations

import random

import httpx

from .._errors import APIConnectionError, APIStatusError, StreamInterruptedError, TunewrightError

BACKOFF_SECONDS = 0.5  # the first delay; each next one doubles
BACKOFF_MAX_SECONDS = 8.0
RETRY_AFTER_MAX_SECONDS = 60.0  # a server that asks for more is not waited for: the caller gets its error


def is_retryable(error: TunewrightError) -> bool:
    """Connection errors, 408, 429 and 5xx, unless the server says otherwise; not a request that could not be
    written at all."""
    if isinstance(error, APIStatusError):
        if error.should_retry is not None:
            return error.should_retry
        return error.status_code in (408, 429) or error.status_code >= 500
    if isinstance(error, APIConnectionError):
        cause = error.__cause__
        return isinstance(cause, httpx.TransportError) and not isinstance(
            cause, httpx.UnsupportedProtocol | httpx.LocalProtocolError
        )
    return isinstance(error, StreamInterruptedError)


def is_outage(error: TunewrightError) -> bool:
    """Failures that a server's restart explains, or that ask for patience: worth waiting for longer than a
    few retries. A 500 is not among them: it may come for ever."""
    if isinstance(error, APIStatusError):
        return error.status_code in (408, 429, 502, 503, 504) and error.should_retry is not False
    return is_retryable(error)


def retry_delay(error: TunewrightError, attempt: int, max_retries: int) -> float | None:
    """Seconds until attempt + 1 (the first attempt is 0), or None: give up and raise."""
    if attempt >= max_retries or not is_retryable(error):
        return None
    wanted = error.retry_after if isinstance(error, APIStatusError) else None
    if wanted is None:
        return backoff(attempt)
    return wanted if wanted <= RETRY_AFTER_MAX_SECONDS else None


def backoff(attempt: int) -> float:
    """Exponential with jitter: between half and all of 0.5, 1, 2, 4, 8, 8 ... seconds."""
    return min(BACKOFF_SECONDS * 2.0 ** min(attempt, 16), BACKOFF_MAX_SECONDS) * random.uniform(0.5, 1.0)
