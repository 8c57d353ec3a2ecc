"""Around every request, in plain ASGI so that streams pass untouched: request id, API key, size of the body."""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunewright.api.errors import error_response
from tunewright.errors import AuthenticationFailed, TooLarge

log = logging.getLogger("tunewright.api")

_OPEN_PATHS = frozenset({"/health", "/ready", "/docs", "/openapi.json"})
_SAFE_ID = re.compile(r"^[A-Za-z0-9._-]{1,128}$")


class _BodyTooLarge(Exception):
    pass


class Gatekeeper:
    """`api_key` None: open. `limits`: bytes by path, `None` for every other path."""

    def __init__(self, app: ASGIApp, api_key: str | None, limits: dict[str | None, int]) -> None:
        self._app = app
        self._key = api_key.encode() if api_key else None
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _SAFE_ID.match(given) else f"req_{uuid.uuid4().hex}"
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

        authorized = self._is_authorized(headers)
        scope["state"]["authorized"] = authorized
        if not authorized and scope["path"] not in _OPEN_PATHS:
            await error_response(
                AuthenticationFailed("Missing or wrong API key: send it as `Authorization: Bearer <key>`.")
            )(scope, receive, answer)
        else:
            await self._limited(scope, headers, receive, answer)
        log.debug(
            "%s %s %s %d %.3f s", request_id, scope["method"], scope["path"], status, time.monotonic() - began
        )

    def _is_authorized(self, headers: Headers) -> bool:
        if self._key is None:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode("latin-1"), self._key)

    async def _limited(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        """Refuse a body over its limit as soon as it is, while it streams in."""
        limit = self._limits.get(scope["path"], self._limits[None])
        too_large = TooLarge(f"The body is larger than {limit} bytes, the limit for {scope['path']}.")
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            await error_response(too_large)(scope, receive, send)
            return
        received = 0
        refused = started = False

        async def count(  # the application may turn our exception into an answer of its own: `refused` remembers
        ) -> Message:
            nonlocal received, refused
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    refused = True
                    raise _BodyTooLarge
            return message

        async def unless_refused(message: Message) -> None:
            nonlocal started
            if refused and not started:
                return
            started = True
            await send(message)

        try:
            await self._app(scope, count, unless_refused)
        except _BodyTooLarge:
            pass
        if refused and not started:
            await error_response(too_large)(scope, receive, send)
