"""The one place that turns errors into HTTP."""

from __future__ import annotations

import logging
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tunewright.api.schemas.common import ErrorResponse
from tunewright.errors import Internal, InvalidRequest, NotFound, TunewrightError

log = logging.getLogger("tunewright.api")

_MEANINGS = {
    400: "The request is wrong; the message says where and what to do.",
    401: "The API key is missing or wrong.",
    404: "There is no such object.",
    413: "The body is too large.",
    429: "Too many requests; see Retry-After.",
    500: "A fault of the service.",
    503: "It cannot be answered now; see Retry-After.",
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: the errors it gives, 401 always among them."""
    return {
        status: {"model": ErrorResponse, "description": _MEANINGS[status]}
        for status in sorted({401, *statuses})
    }


def error_response(error: TunewrightError) -> JSONResponse:
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


def install_error_handlers(app: FastAPI) -> None:
    async def on_domain_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, TunewrightError)
        return error_response(error)

    async def on_validation_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(_of_validation(error))

    async def on_http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return error_response(
                NotFound(f"There is no {request.method} {request.url.path} here.", code="unknown_url")
            )
        if error.status_code == 405:
            response = error_response(
                InvalidRequest(
                    f"{request.url.path} does not take {request.method}.", code="method_not_allowed"
                )
            )
            response.status_code = 405
            response.headers.update(error.headers or {})
            return response
        response = error_response(InvalidRequest(str(error.detail), code="bad_request"))
        response.status_code = error.status_code
        return response

    async def on_fault(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s broke down", request.method, request.url.path, exc_info=error)
        response = error_response(Internal("The service hit a fault of its own; its log has the details."))
        response.headers["x-request-id"] = request.state.request_id  # this answer goes past the Gatekeeper
        return response

    app.add_exception_handler(TunewrightError, on_domain_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_fault)


_UNION_TAGS = {"int", "float", "str", "bool", "literal['auto']", "literal['all-linear']", "list[str]"}


def _of_validation(error: RequestValidationError) -> InvalidRequest:
    """The deepest fault, in one line, with the parameter's dotted name."""
    faults = error.errors()
    for fault in faults:
        if fault["type"] == "json_invalid":
            return InvalidRequest(
                f"The body is not valid JSON: {fault['ctx']['error']}.", code="invalid_json"
            )
    named = [(_param(fault["loc"]), fault) for fault in faults]
    param, fault = named[0]
    alternatives = [_sentence(f) for p, f in named if p == param]
    if fault["type"] == "extra_forbidden":
        return InvalidRequest(f"Unknown parameter: {param}.", param=param, code="unknown_parameter")
    if fault["type"] == "missing":
        return InvalidRequest(f"Missing parameter: {param}.", param=param, code="missing_parameter")
    return InvalidRequest(f"Invalid {param}: {'; or '.join(dict.fromkeys(alternatives))}.", param=param)


def _param(location: tuple[Any, ...]) -> str:
    parts = [str(part) for part in location if part not in ("body", "query", "path")]
    kept = [part for part in parts if not _is_union_tag(part)]
    return ".".join(kept) or "body"


def _is_union_tag(part: str) -> bool:
    return part in _UNION_TAGS or part.startswith(("literal[", "constrained-", "function-", "list["))


def _sentence(fault: Any) -> str:
    text = str(fault["msg"]).removeprefix("Value error, ")
    return text[:1].lower() + text[1:]
