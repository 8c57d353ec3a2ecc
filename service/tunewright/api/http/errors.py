"""Converts errors to HTTP responses; nothing else does."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route

from tunewright.api.http.wire import ErrorResponse
from tunewright.atomic import is_disk_full
from tunewright.errors import (
    Internal,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    StorageFull,
    TunewrightError,
    cut,
)
from tunewright.graders.models import BY_NAME as GRADERS_BY_NAME
from tunewright.graders.models import ONE as ONE_GRADER
from tunewright.graders.models import TYPES as GRADERS
from tunewright.rows.cleaning.options import BY_NAME as STEPS
from tunewright.synthesizer.tasks import TASKS

log = logging.getLogger("tunewright.api")

_DISK_FULL = "The disk is full, so nothing was changed. Free some space and try again."

_MEANINGS = {
    400: "The request is wrong; the message says where and what to do.",
    401: "The API key is missing or wrong.",
    403: "Without a key: the request may come from another site's page.",
    404: "There is no such object.",
    408: "The body stopped coming.",
    409: "A requirement that was set before is not met; the message has the numbers.",
    413: "The body is too large.",
    429: "Too many requests; see Retry-After.",
    500: "A fault of the service.",
    503: "It cannot be answered now; see Retry-After.",
    504: "The generation took longer than the service allows.",
    507: "The disk is full; nothing was changed.",
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with these error statuses, and with 401 and 403 like every route."""
    return {
        status: {"model": ErrorResponse, "description": _MEANINGS[status]}
        for status in sorted({401, 403, *statuses})
    }


def error_response(error: TunewrightError) -> Response:
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    elif error.status == 408:
        headers["Connection"] = "close"  # the rest of the body may still arrive, and is not a request
    elif error.status in (409, 504, 507) or isinstance(error, QuotaExceeded):
        # OpenAI's clients heed it: a retry would take as long again, or fail again.
        headers["X-Should-Retry"] = "false"
    # A message may quote half of a surrogate pair, which can only be sent escaped.
    body = json.dumps(error.body())
    return Response(body, status_code=error.status, headers=headers, media_type="application/json")


def install_error_handlers(app: FastAPI) -> None:
    async def on_domain_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, TunewrightError)
        return error_response(error)

    async def on_validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_response(_validation_error(error, request.headers.get("content-type", "")))

    async def on_os_error(request: Request, error: Exception) -> Response:
        if is_disk_full(error):
            return error_response(StorageFull(_DISK_FULL))
        return await on_fault(request, error)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return error_response(
                NotFound(
                    f"There is no {request.method} {cut(request.url.path, 200)} here.", code="unknown_url"
                )
            )
        if error.status_code == 405:
            response = error_response(
                InvalidRequest(
                    f"{cut(request.url.path, 200)} does not take {request.method}.", code="method_not_allowed"
                )
            )
            response.status_code = 405
            response.headers["Allow"] = ", ".join(sorted(_methods(request)))
            return response
        if error.__cause__ is not None:
            return error_response(_body_error(error.__cause__))
        response = error_response(InvalidRequest(str(error.detail), code="bad_request"))
        response.status_code = error.status_code
        return response

    async def on_fault(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        response = error_response(Internal("The service hit a fault of its own; its log has the details."))
        # This answer bypasses AccessMiddleware, which sets the header of all others.
        response.headers["x-request-id"] = request.state.request_id
        return response

    app.add_exception_handler(TunewrightError, on_domain_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(OSError, on_os_error)
    app.add_exception_handler(Exception, on_fault)


def _methods(request: Request) -> set[str]:
    """The methods that the URL takes. Each is a route of its own, and Starlette's error has only those of the first."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    path = next(route.path for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return {method for route in routes if route.path == path for method in route.methods or ()}


def _body_error(cause: BaseException) -> TunewrightError:
    """The error for a body that FastAPI could not read."""
    if is_disk_full(cause):
        return StorageFull(_DISK_FULL)
    if isinstance(cause, RecursionError):
        return InvalidRequest("The body is nested too deeply.", code="invalid_json")
    if isinstance(cause, UnicodeDecodeError):
        return InvalidRequest("The body is not UTF-8 text.", code="invalid_json")
    if isinstance(cause, ValueError):  # an integer with more digits than Python parses
        return InvalidRequest("The body is not valid JSON: a number in it is too long.", code="invalid_json")
    return InvalidRequest("The body could not be read.", code="bad_request")


_UNION_TAGS = {
    "int", "float", "str", "bool", "literal['auto']", "literal['all-linear']", "list[str]", GRADERS_BY_NAME, ONE_GRADER,
    "InputText", "EarlyStopping",
}  # fmt: skip


def _validation_error(error: RequestValidationError, content_type: str) -> InvalidRequest:
    """The error for a request that pydantic refused: the first fault, in one line, with the parameter's dotted name."""
    faults = error.errors()
    for fault in faults:
        if fault["type"] == "json_invalid":
            return InvalidRequest(
                f"The body is not valid JSON: {fault['ctx']['error']}.", code="invalid_json"
            )
    named = [(_param(fault["loc"]), fault) for fault in faults]
    param, fault = named[0]
    if fault["type"] == "literal_error" and isinstance(fault["input"], dict):
        # What can be a word or an object is an object here, and the fault lies in it.
        param, fault = next((one for one in named if one[0].startswith(f"{param}.")), named[0])
    if param == "body" and isinstance(error.body, bytes) and fault["type"] != "missing":
        return InvalidRequest(
            f"The body is not read as JSON, since its Content-Type is {content_type or 'missing'}: send it with the "
            "header Content-Type: application/json.",
            code="invalid_json",
        )
    if param == "body" and fault["type"] == "missing":
        return InvalidRequest("The body is empty: send a JSON object.", code="invalid_json")
    alternatives = [_sentence(f) for p, f in named if p == param]
    if fault["type"] == "extra_forbidden":
        return InvalidRequest(f"Unknown parameter: {param}.", param=param, code="unknown_parameter")
    if fault["type"] == "union_tag_not_found":
        param = f"{param}.{fault['ctx']['discriminator'].strip(chr(39))}"
    if fault["type"] in ("missing", "union_tag_not_found"):
        return InvalidRequest(f"Missing parameter: {param}.", param=param, code="missing_parameter")
    given = fault["input"]
    got = f"; got {json.dumps(given)[:40]}" if isinstance(given, bool | int | float) else ""
    return InvalidRequest(
        f"Invalid {param}: {'; or '.join(dict.fromkeys(alternatives))}{got}.",
        param=None if param == "body" else param,
    )


def _param(location: tuple[Any, ...]) -> str:
    parts = [str(part) for part in location if part not in ("body", "query", "path", "header")]
    kept = [
        part
        for first, before, part in zip(["", "", *parts], ["", *parts], parts, strict=False)
        if not _is_union_tag(part)
        and not (before.isdigit() and part in STEPS)
        and not (before == "task" and part in TASKS)
        # the type of a grader, and no field or grader of that name
        and not (part in GRADERS and (before in ("grader", ONE_GRADER) or first == GRADERS_BY_NAME))
    ]
    return cut(".".join(kept), 200) or "body"


def _is_union_tag(part: str) -> bool:
    return part in _UNION_TAGS or part.startswith(("literal[", "constrained-", "function-", "list[", "dict["))


def _sentence(fault: Any) -> str:
    text = str(fault["msg"]).removeprefix("Value error, ")
    if text.startswith("Expected UploadFile"):
        return "send it as a file, a part of multipart/form-data with a filename"
    if fault["type"] == "union_tag_invalid":
        return f"there is no {fault['ctx']['tag'][:40]}; choose one of {fault['ctx']['expected_tags']}"
    if fault["type"] == "string_unicode":
        return "half of a surrogate pair (\\ud800 to \\udfff) is no text"
    return text[:1].lower() + text[1:]
