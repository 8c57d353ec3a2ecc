"""The error tree. Every error a user can meet is one of these; `api/errors.py` alone turns them into HTTP.

TunewrightError
├── InvalidRequest         400  the request is wrong: says which parameter and what to do
│   └── UnsupportedFeature 400  right in OpenAI's API, not offered here
├── AuthenticationFailed   401
├── NotFound               404
├── TooLarge               413
├── EngineUnavailable      503  generation cannot be answered now; `retry_after` seconds
└── Internal               500

A permanent conflict (cancelling a finished job, say) is InvalidRequest: OpenAI's client retries 409 by itself.
"""

from __future__ import annotations


class TunewrightError(Exception):
    """Base of the tree; `type`, `code` and `param` are the fields of OpenAI's error object."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else type(self).code
        self.retry_after = retry_after

    def body(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(TunewrightError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class UnsupportedFeature(InvalidRequest):
    code = "unsupported"


class AuthenticationFailed(TunewrightError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class NotFound(TunewrightError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class TooLarge(TunewrightError):
    status = 413
    type = "invalid_request_error"
    code = "too_large"


class EngineUnavailable(TunewrightError):
    status = 503
    type = "server_error"
    code = "engine_unavailable"


class Internal(TunewrightError):
    status = 500
    type = "server_error"
    code = "internal_error"
