"""The error tree. Every error that a user can see is one of these; `api/errors.py` alone turns them into HTTP.

TunewrightError
├── InvalidRequest         400  the request is wrong; the message names the parameter and the remedy
│   ├── UnsupportedFeature 400  valid in OpenAI's API, not offered here
│   ├── ExportUnsupported  400  the adapter or its base is of a kind that cannot be merged or combined
│   └── InvalidAdapter     400  the adapter's files are faulty, do not fit the base, or cannot be served
├── AuthenticationFailed   401
├── Forbidden              403  without a key, a request that may come from another site's page
├── NotFound               404
├── BodyStalled            408  the request's body stopped coming
├── TooLarge               413
├── TooManyRequests        429  a limit of the service is reached; retry after `retry_after` seconds
│   └── QuotaExceeded      429  the project has as much as it may have; no retry helps
├── EngineUnavailable      503  no engine can answer the generation now; retry after `retry_after` seconds
├── StorageUnavailable          what the service stores in cannot be used now: the same works later
│   ├── Busy               503  the database's write lock was not available in time
│   ├── DatabaseUnavailable 503 the database's server cannot be reached
│   ├── ArtifactsUnavailable 503 the bucket of artifacts does not answer, or refuses; what is cached is still served
│   └── StorageFull        507  the disk is full: nothing was stored; reads still work
├── IssuerUnavailable      503  the issuer of tokens does not answer, and its keys are not known
├── RequestTimeout         504  a generation took too long; clients must not retry automatically
└── Internal               500

A permanent conflict (cancelling a finished job, say) is an InvalidRequest: OpenAI's client retries 409 automatically.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping

LONGEST_MESSAGE, _LONGEST_PARAM = 2000, 200
"""Most characters of an error's message, which may quote what was sent, and of its `param`."""
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


def quoted(value: object) -> str:
    """A value from outside as messages quote it: its `repr`, with the middle left out where it is long."""
    return _short.repr(value)


def cut(text: str, most: int) -> str:
    """The text, or its beginning where it has more than `most` characters."""
    return text if len(text) <= most else text[:most] + "..."


class TunewrightError(Exception):
    """Base class of all errors; `type`, `code` and `param` are the fields of OpenAI's error object."""

    status = 500
    type = "server_error"
    code: str | None = None
    retry_after: float | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        message = cut(message, LONGEST_MESSAGE)
        super().__init__(message)
        self.message = message
        self.param = cut(param, _LONGEST_PARAM) if param is not None else None
        self.code = code if code is not None else type(self).code
        self.headers = dict(headers or {})
        """Of the answer."""
        if retry_after is not None:
            self.retry_after = retry_after

    def body(self) -> dict[str, dict[str, str | None]]:
        """The error as OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(TunewrightError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class UnsupportedFeature(InvalidRequest):
    code = "unsupported"


class ExportUnsupported(InvalidRequest):
    code = "export_unsupported"


class InvalidAdapter(InvalidRequest):
    code = "adapter_invalid"


class AuthenticationFailed(TunewrightError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(TunewrightError):
    status = 403
    type = "permission_error"
    code = "forbidden"


class NotFound(TunewrightError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class Conflict(TunewrightError):
    """What is asked for is refused by a rule that was set before."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class BodyStalled(TunewrightError):
    status = 408
    type = "invalid_request_error"
    code = "body_stalled"


class TooLarge(TunewrightError):
    status = 413
    type = "invalid_request_error"
    code = "too_large"


class TooManyRequests(TunewrightError):
    status = 429
    type = "rate_limit_error"
    code = "too_many_requests"
    retry_after: float | None = 1.0


class QuotaExceeded(TooManyRequests):
    """The project has as much as it may have. To try again helps only when it has less."""

    type = code = "insufficient_quota"
    retry_after = None


class EngineUnavailable(TunewrightError):
    status = 503
    type = "server_error"
    code = "engine_unavailable"
    retry_after = 5.0


class StorageUnavailable(TunewrightError):
    """The database, the disk or the bucket of artifacts cannot be used now, which is no fault of what was asked. The
    same works later (`scheduler.temporary` has the errors of libraries that mean it too)."""


class Busy(StorageUnavailable):
    status = 503
    type = "server_error"
    code = "database_busy"
    retry_after = 2.0


class DatabaseUnavailable(StorageUnavailable):
    """A database that is not SQLite cannot be reached now."""

    status = 503
    type = "server_error"
    code = "database_unavailable"
    retry_after = 2.0


class ArtifactsUnavailable(StorageUnavailable):
    """The bucket of artifacts cannot be used now."""

    status = 503
    type = "server_error"
    code = "artifacts_unavailable"
    retry_after = 5.0

    def __init__(self, message: str, *, is_refusal: bool = False) -> None:
        """`is_refusal`: the service has answered, and refuses (its credentials, its bucket), or there are no
        credentials; trying again changes nothing."""
        super().__init__(message)
        self.is_refusal = is_refusal


class IssuerUnavailable(TunewrightError):
    """Tokens cannot be checked now. Those of keys that are known still are."""

    status = 503
    type = "server_error"
    code = "issuer_unavailable"
    retry_after = 5.0


class RequestTimeout(TunewrightError):
    status = 504
    type = "server_error"
    code = "request_timeout"


class StorageFull(StorageUnavailable):
    status = 507
    type = "server_error"
    code = "storage_full"


class Internal(TunewrightError):
    status = 500
    type = "server_error"
    code = "internal_error"
