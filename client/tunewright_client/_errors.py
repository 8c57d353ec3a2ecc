"""The errors of this package.

    TunewrightError
    |- APIConnectionError             no usable answer: refused, reset, name not found
    |  '- APITimeoutError             no answer in time
    |- APIStatusError                 an error answer; has status_code, type, param, code, request_id
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
    |- InvalidResponseError           a successful answer that cannot be read
    |- StreamInterruptedError         a stream that ended before it was complete
    |- JobError                       a job ended without success during a wait; has job
    |  |- JobFailedError
    |  '- JobCancelledError
    |- DeploymentFailedError          a deployment failed during a wait; has deployment
    '- WaitTimeoutError               a wait reached its timeout; also a TimeoutError

This is the only module that makes errors of responses. Wrong arguments raise ValueError or TypeError.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, cast

import httpx2

if TYPE_CHECKING:
    from .types.deployments import DeploymentRecord
    from .types.jobs import WorkRecord


class TunewrightError(Exception):
    """Base class of the errors of this package."""


class APIConnectionError(TunewrightError):
    """The server could not be reached, or the connection broke. `__cause__` is the error of httpx2."""


class APITimeoutError(APIConnectionError):
    """The server did not answer within the timeout."""


class APIStatusError(TunewrightError):
    """The server answered with an error.

    - status_code: the HTTP status
    - message, type, param, code: the fields of `error` in the body
    - request_id: the header `x-request-id`, to be quoted in a report
    - retry_after: seconds, from the header `Retry-After`; None without one
    - should_retry: whether a retry makes sense, from the header `x-should-retry`; None without one
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
    """400: the request is wrong, or impossible in the present state."""


class AuthenticationError(APIStatusError):
    """401: no API key, or an unknown one."""


class PermissionDeniedError(APIStatusError):
    """403: the key does not permit this."""


class NotFoundError(APIStatusError):
    """404: there is no such object or route."""


class ConflictError(APIStatusError):
    """409: the object is in a state that forbids this at present."""


class PayloadTooLargeError(APIStatusError):
    """413: the upload or body is larger than the server's limit."""


class UnprocessableEntityError(APIStatusError):
    """422: the request is well-formed but not acceptable."""


class RateLimitError(APIStatusError):
    """429: too many requests; see `retry_after`."""


class ServerError(APIStatusError):
    """5xx: the server failed."""


class ServiceUnavailableError(ServerError):
    """503: the server, or the requested model, is not running."""


class InvalidResponseError(TunewrightError):
    """A successful answer that is not what the API describes, most often because base_url is not a Tunewright
    server."""


class StreamInterruptedError(TunewrightError):
    """A stream or download ended, or its connection broke, before it was complete."""


class JobError(TunewrightError):
    """A job of any kind ended without success during a wait. `job` is its last record."""

    def __init__(self, message: str, job: WorkRecord) -> None:
        super().__init__(message)
        self.message = message
        self.job = job


class JobFailedError(JobError):
    """The job failed. `code`, `message` and `param` come from the job's error."""

    def __init__(self, message: str, job: WorkRecord) -> None:
        super().__init__(message, job)
        self.code = job.error.code if job.error else None
        self.param = job.error.param if job.error else None


class JobCancelledError(JobError):
    """The job was cancelled, by this client or another one."""


class DeploymentFailedError(TunewrightError):
    """The deployment could not be started, or is being taken down. `deployment` is its last record; its `reason` says
    why, and its `log_tail` has the last lines of vLLM's log."""

    def __init__(self, message: str, deployment: DeploymentRecord) -> None:
        super().__init__(message)
        self.message = message
        self.deployment = deployment


class WaitTimeoutError(TunewrightError, TimeoutError):
    """A wait reached its timeout. The server continues its part.

    The error of a wait for a job or an export has its last record as `job`. If none could be read, it is one of the id
    alone, with the status `unknown`. The errors of other waits have no such attribute.
    """

    job: WorkRecord

    def __init__(self, message: str, job: WorkRecord | None = None) -> None:
        super().__init__(message)
        if job is not None:
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

# An error inside a stream has the HTTP status 200, so that its class follows from its code (Tunewright's names) or else
# from its type (OpenAI's and vLLM's names).
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


def connection_error(cause: httpx2.RequestError) -> APIConnectionError:
    """The APIConnectionError of an error of httpx2. The caller raises it `from` the cause."""
    kind = APITimeoutError if isinstance(cause, httpx2.TimeoutException) else APIConnectionError
    detail = str(cause) or type(cause).__name__
    try:
        where = f" ({cause.request.method} {cause.request.url.copy_with(username=None, password=None)})"
        if isinstance(cause, httpx2.RemoteProtocolError) and cause.request.url.scheme == "http":
            detail += (
                f"{'' if detail.endswith('.') else '.'} Where the service has TLS, its address is https://..."
            )
    except RuntimeError:
        # The error has no request.
        where = ""
    return kind(f"{'timed out' if kind is APITimeoutError else 'connection failed'}: {detail}{where}")


def status_error(response: httpx2.Response) -> APIStatusError:
    """The typed error of an unsuccessful response, whose body must have been read."""
    try:
        body: Any = response.json()
    except ValueError:
        body = None
    fields = _fields(body) or {}
    error = fields.get("error")
    if error is None:
        # The answer of a proxy or of a web framework.
        error = fields.get("detail") or fields.get("message")
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
    """The typed error of the `error` in an event of a stream, whose HTTP status is 200."""
    status = 500
    if (fields := _fields(error)) is not None:
        code, kind = (str(fields.get(name) or "").lower() for name in ("code", "type"))
        if code.isdecimal() and 400 <= int(code) <= 599:
            status = int(code)
        else:
            status = _STATUS_BY_NAME.get(code) or _STATUS_BY_NAME.get(kind, 500)
    return _build(status, error, request_id=request_id, retry_after=None)


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds to wait, from a `Retry-After` with seconds or an HTTP date. None where it is missing or unreadable."""
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
    # The comparison is false for nan and inf.
    return max(seconds, 0.0) if seconds < float("inf") else None


def _build(
    status: int,
    error: object,
    *,
    request_id: str | None,
    retry_after: float | None,
    should_retry: bool | None = None,
) -> APIStatusError:
    kind = _BY_STATUS.get(status, ServerError if status >= 500 else APIStatusError)
    fields = _fields(error)
    if fields is None:
        fields = {"message": error}

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


def _fields(value: object) -> Mapping[str, Any] | None:
    """The fields of a JSON object; None for other values."""
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else None
