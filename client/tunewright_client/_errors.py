"""Every error this package raises on purpose.

    TunewrightError
    |- APIConnectionError             no usable answer: refused, reset, name not found
    |  '- APITimeoutError             no answer in time
    |- APIStatusError                 an answer that says no; has status_code, type, param, code, request_id
    |  |- BadRequestError             400
    |  |- AuthenticationError         401
    |  |- PermissionDeniedError       403
    |  |- NotFoundError               404
    |  |- ConflictError               409
    |  |- PayloadTooLargeError        413
    |  |- UnprocessableEntityError    422
    |  |- RateLimitError              429
    |  '- ServerError                 5xx
    |     '- ServiceUnavailableError  503
    |- InvalidResponseError           an answer that says yes but cannot be read
    |- StreamInterruptedError         a stream that broke off before its end
    |- JobError                       a job that was waited for did not succeed; has job
    |  |- JobFailedError
    |  '- JobCancelledError
    |- DeploymentFailedError          a deployment that was waited for could not be started; has deployment
    '- WaitTimeoutError               waited long enough; also a TimeoutError

This module imports httpx only to read a response; turning answers into errors happens here and nowhere else.
Wrong arguments are Python's own ValueError and TypeError.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from .types.deployments import DeploymentRecord
    from .types.jobs import WorkRecord


class TunewrightError(Exception):
    """Base of every error of this package."""


class APIConnectionError(TunewrightError):
    """The server could not be reached, or the connection broke; `__cause__` is httpx's error."""


class APITimeoutError(APIConnectionError):
    """The server did not answer within the timeout."""


class APIStatusError(TunewrightError):
    """The server answered with an error.

    Attributes: `status_code` (HTTP), `message`, `type`, `param` and `code` (from the body's `error`),
    `request_id` (header `x-request-id`, quote it in a report), `retry_after` (seconds, or None) and
    `should_retry` (what the server says of trying again, header `x-should-retry`; None where it does not).
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int = 0,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code
        self.type = type
        self.param = param
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after
        self.should_retry = should_retry

    def __str__(self) -> str:
        notes = [str(self.status_code)]
        notes += [self.code] if self.code else []
        notes += [f"request {self.request_id}"] if self.request_id else []
        return f"{self.message} ({', '.join(notes)})"


class BadRequestError(APIStatusError):
    """400: the request is wrong, or can never be done in the present state."""


class AuthenticationError(APIStatusError):
    """401: no API key, or one the server does not know."""


class PermissionDeniedError(APIStatusError):
    """403: the key may not do this."""


class NotFoundError(APIStatusError):
    """404: no such object, or no such route."""


class ConflictError(APIStatusError):
    """409: the object is in a state that forbids this now."""


class PayloadTooLargeError(APIStatusError):
    """413: the upload or body is over the server's limit."""


class UnprocessableEntityError(APIStatusError):
    """422: well formed, and still not acceptable."""


class RateLimitError(APIStatusError):
    """429: too many requests; see `retry_after`."""


class ServerError(APIStatusError):
    """5xx: the server failed."""


class ServiceUnavailableError(ServerError):
    """503: the server, or the model asked for, is not up."""


class InvalidResponseError(TunewrightError):
    """A successful answer that is not what the API describes: most often a base_url that is not
    Tunewright's."""


class StreamInterruptedError(TunewrightError):
    """A stream ended, or its connection broke, before the server said that it was complete."""


class JobError(TunewrightError):
    """A job, or an export, that was waited for ended without success. `job` is its last record."""

    def __init__(self, message: str, job: WorkRecord) -> None:
        super().__init__(message)
        self.message = message
        self.job = job


class JobFailedError(JobError):
    """The job failed. `code`, `message` and `param` are those of the job's own error."""

    def __init__(self, message: str, job: WorkRecord) -> None:
        super().__init__(message, job)
        self.code = job.error.code if job.error else None
        self.param = job.error.param if job.error else None


class JobCancelledError(JobError):
    """The job was cancelled, by whomever."""


class DeploymentFailedError(TunewrightError):
    """The deployment could not be started, or is being taken down. `deployment` is its last record, whose
    `reason` says why, and `log_tail` what vLLM wrote last."""

    def __init__(self, message: str, deployment: DeploymentRecord) -> None:
        super().__init__(message)
        self.message = message
        self.deployment = deployment


class WaitTimeoutError(TunewrightError, TimeoutError):
    """What was waited for did not happen in time; it goes on in the server. `job` is its last record."""

    def __init__(self, message: str, job: WorkRecord | None = None) -> None:
        super().__init__(message)
        self.job = job


_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    413: PayloadTooLargeError,
    422: UnprocessableEntityError,
    429: RateLimitError,
    503: ServiceUnavailableError,
}

# An error inside a stream comes under HTTP 200, so that its class is told from its code (Tunewright's), else
# from its type (OpenAI's names and vLLM's).
_STATUS_BY_NAME = {
    "invalid_api_key": 401,
    "not_found": 404,
    "too_large": 413,
    "rate_limit_exceeded": 429,
    "request_timeout": 504,
    "engine_unavailable": 503,
    "invalid_request_error": 400,
    "badrequesterror": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "notfounderror": 404,
    "conflict_error": 409,
    "rate_limit_error": 429,
    "service_unavailable": 503,
    "service_unavailable_error": 503,
    "serviceunavailableerror": 503,
}


def connection_error(cause: httpx.RequestError) -> APIConnectionError:
    """httpx's failure to get an answer, as ours. The caller raises it `from` the cause."""
    kind = APITimeoutError if isinstance(cause, httpx.TimeoutException) else APIConnectionError
    detail = str(cause) or type(cause).__name__
    try:
        where = f" ({cause.request.method} {cause.request.url.copy_with(username=None, password=None)})"
    except RuntimeError:  # httpx: no request was ever set
        where = ""
    return kind(f"{'timed out' if kind is APITimeoutError else 'connection failed'}: {detail}{where}")


def status_error(response: httpx.Response) -> APIStatusError:
    """The typed error of an answer that is no success; its body has been read."""
    try:
        body: Any = response.json()
    except ValueError:
        body = None
    error = body.get("error") if isinstance(body, Mapping) else None
    if error is None and isinstance(body, Mapping):
        error = body.get("detail") or body.get("message")  # a proxy's or a framework's own answer
    if error is None:
        error = response.text.strip()[:500] or response.reason_phrase or "no message"
    return _build(
        response.status_code,
        error,
        request_id=response.headers.get("x-request-id"),
        retry_after=parse_retry_after(response.headers.get("retry-after")),
        should_retry={"true": True, "false": False}.get(response.headers.get("x-should-retry", "")),
    )


def error_in_stream(error: object, request_id: str | None = None) -> APIStatusError:
    """The typed error of an `error` that came as an event of a stream (whose HTTP status was 200)."""
    status = 500
    if isinstance(error, Mapping):
        code, kind = (str(error.get(name) or "").lower() for name in ("code", "type"))
        if code.isdecimal() and 400 <= int(code) <= 599:
            status = int(code)
        else:
            status = _STATUS_BY_NAME.get(code) or _STATUS_BY_NAME.get(kind, 500)
    return _build(status, error, request_id=request_id, retry_after=None)


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds to wait, from a `Retry-After` of seconds or an HTTP date; None where there is none."""
    if not value:
        return None
    value = value.strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except ValueError:
            return None
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        seconds = (when - (now or datetime.now(UTC))).total_seconds()
    return max(seconds, 0.0) if seconds < float("inf") else None  # not nan, not inf


def _build(
    status: int,
    error: object,
    *,
    request_id: str | None,
    retry_after: float | None,
    should_retry: bool | None = None,
) -> APIStatusError:
    kind = _BY_STATUS.get(status, ServerError if status >= 500 else APIStatusError)
    fields: Mapping[str, Any] = error if isinstance(error, Mapping) else {"message": error}

    def text(name: str) -> str | None:
        return None if fields.get(name) is None else str(fields[name])

    return kind(
        text("message") or f"HTTP {status}",
        status_code=status,
        type=text("type"),
        param=text("param"),
        code=text("code"),
        request_id=request_id,
        retry_after=retry_after,
        should_retry=should_retry,
    )
