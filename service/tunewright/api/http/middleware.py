"""The middleware of every request: request id, API key, limits of bodies and uploads. Plain ASGI, so that streams pass
unchanged."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from secrets import token_hex

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunewright import tracing
from tunewright.api.http.access import NOBODY, Gate, Principal
from tunewright.api.http.errors import error_response
from tunewright.api.http.trail import type_of
from tunewright.api.telemetry.counts import HttpCounts
from tunewright.errors import (
    AuthenticationFailed,
    BodyStalled,
    Busy,
    TooLarge,
    TooManyRequests,
    TunewrightError,
    UnsupportedFeature,
)
from tunewright.logs import audit, logged_with
from tunewright.store.audit import Audited
from tunewright.tracing import NO_SPAN, Span

log = logging.getLogger("tunewright.api")

OPEN_PATHS = frozenset({"/health", "/ready", "/docs", "/openapi.json"})
"""Answered to everyone: they say which version runs, what it offers and which of its parts are ready."""
_UNTRACED = frozenset({"/health", "/ready", "/metrics"})
"""Asked every few seconds, by machines."""
_NO_TRACE: AbstractContextManager[Span] = nullcontext(NO_SPAN)
_READING = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_LONGEST_PATH, _LONGEST_PEER, _LONGEST_METHOD = 200, 64, 16
_SAFE_ID = re.compile(r"^[A-Za-z0-9._-]{1,128}$")

_BODY_STALLED = 30.0
"""Seconds without a new byte after which an unfinished body is refused."""
_GRACE, _SLOWEST = 30.0, 16 * 2**10
"""Seconds after which a body must have come with so many bytes a second: it holds a place for an upload, or memory."""
_ALL_BODIES = 512 * 2**20
"""Bytes of all bodies that are in memory at a time."""
_MOST_VALUES = 2**17
"""Values in a body that FastAPI parses, which it does in the event loop. A job with all its options has hundreds."""
PARTS = "/v1/uploads/*/parts"
"""What the limits of bodies call the paths of the parts of uploads."""
_UPLOADS = frozenset({"/v1/files", "/v1/adapters/upload", PARTS})
_IS_PART = re.compile(r"/v1/uploads/[^/]+/parts")


def is_upload(scope: Scope) -> bool:
    """Whether the body of a request is a form with a file, which is spooled to disk."""
    return scope["method"] == "POST" and _limited(scope["path"]) in _UPLOADS


def _limited(path: str) -> str:
    """What the limits of bodies call a path."""
    return PARTS if _IS_PART.fullmatch(path) else path


class _Refused(Exception):
    """Raised into the application when its request's body is refused."""


def _traced(scope: Scope, headers: Headers, request_id: str) -> AbstractContextManager[Span]:
    if not tracing.is_on() or scope["path"] in _UNTRACED:
        return _NO_TRACE
    method = scope["method"]
    told = {"http.request.method": method, "url.path": scope["path"][:_LONGEST_PATH]}
    return tracing.request(method, headers, {**told, "tunewright.request_id": request_id})


def _tell(span: Span, method: str, route: str, status: int) -> None:
    span.rename(f"{method} {route}" if route else method)
    span.set({"http.route": route or None, "http.response.status_code": status})
    if status >= 500:
        span.fail(str(status))


def _audited(scope: Scope, principal: Principal, status: int) -> Audited:
    """A request as the audit log has it."""
    client, method = scope.get("client"), scope["method"]
    route = str(getattr(scope.get("route"), "path_format", scope["path"]))
    params = scope.get("path_params", {})
    named, managed = next(reversed(params.values()), None), params.get("project_id")
    project = managed if managed is not None and principal.is_operator and status < 400 else principal.project
    return Audited(
        type=type_of(method, route, status),
        project=project,
        actor=principal.key or "",
        subject=principal.subject,
        peer=client[0][:_LONGEST_PEER] if client else None,
        request_id=scope["state"]["request_id"],
        method=method[:_LONGEST_METHOD],
        path=scope["path"][:_LONGEST_PATH],
        status=status,
        resource=str(named)[:_LONGEST_PATH] if named is not None else None,
    )


class AccessMiddleware:
    """Checks the API key, limits bodies and concurrent uploads, gives every request an id, and records changes and
    refusals.

    `gate` says who sends a request. `limits` has
    the largest body in bytes by path, and under `None` the one of all other paths. `max_uploads` is the number of
    concurrent uploads. `unchanging`: paths of which a POST changes nothing. `open_paths`: those that are answered
    without the key. `counts`: where each request is counted.
    """

    def __init__(
        self,
        app: ASGIApp,
        gate: Gate,
        limits: dict[str | None, int],
        max_uploads: int,
        unchanging: Collection[str] = (),
        *,
        open_paths: Collection[str] = OPEN_PATHS,
        counts: HttpCounts | None = None,
    ) -> None:
        self._app = app
        self._open_paths = frozenset(open_paths)
        self._gate = gate
        self._counts = counts or HttpCounts()
        self._unchanging = frozenset(unchanging)
        self._limits = limits
        self._max_uploads = max_uploads
        self._uploads = 0
        self._held = 0
        """Bytes of the bodies in memory: all but uploads, which are spooled to disk."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _SAFE_ID.match(given) else f"req_{token_hex(16)}"
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.monotonic()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = MutableHeaders(scope=message)
                answered["x-request-id"] = request_id
            await send(message)

        refusal = await self._identify(scope, headers)
        with _traced(scope, headers, request_id) as span, logged_with(
            request_id=request_id, trace_id=span.trace_id
        ):  # fmt: skip
            try:
                if refusal is not None:
                    await error_response(refusal)(scope, receive, answer)
                else:
                    await self._limit_uploads(scope, headers, receive, answer)
            finally:
                self._record(scope, status or 500)
                seconds = time.monotonic() - began
                route = getattr(scope.get("route"), "path_format", "")
                self._counts.observe(scope["method"], route, status or 500, seconds)
                if span:
                    _tell(span, scope["method"], route, status or 500)
        log.debug("%s %s %s %d %.3f s", request_id, scope["method"], scope["path"], status, seconds)

    def _record(self, scope: Scope, status: int) -> None:
        """Record a refusal, or a request that changes something, whether or not it succeeded."""
        refused = status in (401, 403)
        if not refused and (scope["method"] in _READING or scope["path"] in self._unchanging):
            return
        client, principal = scope.get("client"), scope["state"]["principal"]
        audit(
            "refused" if refused else "change",
            peer=client[0][:_LONGEST_PEER] if client else None,  # a proxy's header, which may be anything
            request_id=scope["state"]["request_id"],
            method=scope["method"],
            route=scope["path"][:_LONGEST_PATH],
            status=status,
            **({"project": principal.project, "key": principal.key} if principal.key else {}),
            **({"subject": principal.subject} if principal.subject else {}),
        )
        trail = scope["app"].state.context.trail if "app" in scope else None
        if trail is not None:
            trail.note(_audited(scope, principal, status))

    async def _identify(self, scope: Scope, headers: Headers) -> TunewrightError | None:
        """Note who sent the request, in its state; why it is refused."""
        keyring = scope["app"].state.context.keyring if "app" in scope else None
        principal, refusal = None, None
        try:
            principal = await self._gate.principal(headers, scope["path"], keyring)
        except TunewrightError as error:
            refusal = error
        except Exception:  # for example a failure of the database
            log.exception("the key of a request could not be looked up")
            refusal = Busy("The key could not be looked up now: try again.")
        scope["state"]["authorized"] = principal is not None
        scope["state"]["principal"] = principal or NOBODY
        if scope["path"] in self._open_paths:
            return None
        if principal is None and refusal is None:
            return AuthenticationFailed("Missing or wrong API key: send it as `Authorization: Bearer <key>`.")
        return refusal

    async def _limit_uploads(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        """Limit the concurrent uploads, since each may use disk space up to the limit of its body."""
        if not is_upload(scope):
            await self._limit_body(scope, headers, receive, send)
            return
        if self._uploads >= self._max_uploads:
            busy = TooManyRequests(
                f"{self._uploads} files are being uploaded, which is the limit (--max-uploads): wait for one to end.",
                code="too_many_uploads",
                retry_after=5,
            )
            await error_response(busy)(scope, receive, send)
            return
        self._uploads += 1
        try:
            await self._limit_body(scope, headers, receive, send)
        finally:
            self._uploads -= 1

    async def _limit_body(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        """Refuse a body that exceeds its limit or stalls, as soon as it does, while it is streamed."""
        if headers.get("content-encoding", "identity").lower() != "identity":
            packed = UnsupportedFeature("Bodies are taken as they are: send it without a Content-Encoding.")
            await error_response(packed)(scope, receive, send)
            return
        path = _limited(scope["path"])
        limit = self._limits.get(path, self._limits[None])
        is_spooled = is_upload(scope)
        is_parsed_here = path not in self._limits
        too_large = TooLarge(f"The body is larger than {limit} bytes, the limit for {path}.")
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            await error_response(too_large)(scope, receive, send)
            return
        received = values = held = 0
        waited = 0.0
        ended = started = False
        refusal: TunewrightError | None = None

        # The application may convert `_Refused` to an answer of its own; `refusal` keeps the right one.
        async def receive_limited() -> Message:
            nonlocal received, values, held, waited, ended, refusal
            if ended:
                return await receive()
            began = time.monotonic()
            try:
                async with asyncio.timeout(_BODY_STALLED):
                    message = await receive()
            except TimeoutError:
                refusal = BodyStalled(
                    f"No byte of the body came for {_BODY_STALLED:.0f} s, after {received} bytes: send it whole."
                )
                raise _Refused from None
            waited += time.monotonic() - began
            ended = not message.get("more_body", False)
            body = message.get("body", b"")
            received += len(body)
            if not is_spooled:
                held += len(body)
                self._held += len(body)
            if is_parsed_here:
                values += body.count(b",")
            if received > limit:
                refusal = too_large
            elif values > _MOST_VALUES:
                refusal = TooLarge(f"The body has more than {_MOST_VALUES} values.")
            elif self._held > _ALL_BODIES:
                refusal = TooManyRequests(
                    f"The bodies of all requests have more than {_ALL_BODIES // 2**20} MiB now: try again.",
                    code="too_many_bytes",
                    retry_after=2,
                )
            elif not ended and received < (waited - _GRACE) * _SLOWEST:
                refusal = BodyStalled(
                    f"The body comes too slowly, {received} bytes in {waited:.0f} s: send {_SLOWEST} a second or more."
                )
            if refusal is not None:
                raise _Refused
            return message

        async def send_unless_refused(message: Message) -> None:
            nonlocal started
            if refusal is not None and not started:
                return
            started = True
            await send(message)

        try:
            await self._app(scope, receive_limited, send_unless_refused)
        except (_Refused, ClientDisconnect):  # a client that disconnected during its body gets no answer
            pass
        finally:
            self._held -= held
        if refusal is not None and not started:
            await error_response(refusal)(scope, receive, send)
