"""What a service without a key answers: requests of programs on its own machine, and none of another site's page.

Such a service listens on loopback. That keeps other machines away, but not a browser on this one, which sends requests
here for any page that it shows. Three checks refuse them:

- `Host` must be loopback or an allowed name. A page whose own name resolves to 127.0.0.1 (DNS rebinding) counts for the
  browser as the same origin, and only this header shows the name.
- `Origin` must be such a name too, and `Sec-Fetch-Site` must not be `cross-site`. Browsers send them and pages cannot
  change them.
- A body must have the content type that its route reads. A page can post a form or text to any site, but JSON only
  after a preflight request, which the service does not answer.

With a key none of this is needed: a browser does not send the key by itself.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection, Iterable
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from tunewright.api.http.errors import error_response
from tunewright.api.http.middleware import OPEN_PATHS, is_upload
from tunewright.errors import Forbidden, InvalidRequest, TunewrightError, cut

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
_NUMERIC = re.compile(r"[0-9.]+", re.ASCII)
_JSON = re.compile(r"application/(?:[\w.-]+\+)?json", re.ASCII | re.IGNORECASE)
_LONGEST_QUOTE = 100


class LocalMiddleware:
    """Answers only what `LocalRequests` and `wrong_type` do not refuse, and the paths that are open to all; on those a
    request of another site counts as one without the key."""

    def __init__(
        self, app: ASGIApp, allowed: Iterable[str] = (), open_paths: Collection[str] = OPEN_PATHS
    ) -> None:
        self._app = app
        self._open_paths = open_paths
        self._requests = LocalRequests(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["path"] in self._open_paths:
            scope["state"]["authorized"] = False
            await self._app(scope, receive, send)
        else:
            await error_response(refusal)(scope, receive, send)

    def _refusal(self, scope: Scope) -> TunewrightError | None:
        headers = Headers(scope=scope)
        refusal = self._requests.refusal(headers)
        if refusal is not None:
            return refusal
        # Pages can send other methods with a body after a preflight request only.
        if scope["method"] != "POST":
            return None
        wrong = wrong_type(headers, takes_form=is_upload(scope))
        return wrong if wrong is not None and _has_route(scope) else None


class LocalRequests:
    """Refuses what does not come from this machine's own programs. `allowed` has further names of the service."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed = frozenset(name.lower().rstrip(".") for name in allowed)
        self._is_ours = lru_cache(256)(self._is_name_of_ours)

    def refusal(self, headers: Headers) -> Forbidden | None:
        """The reason why the request is refused, by the names that its headers have."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            given = f"the Host {cut(', '.join(hosts), _LONGEST_QUOTE)}" if hosts else "no Host"
            return Forbidden(
                f"Without an API key the service answers to loopback names only, and the request has {given}: use "
                "http://127.0.0.1, or start the service with a key (TUNEWRIGHT_API_KEY) or with --allowed-host NAME.",
                code="host_not_allowed",
            )
        origins = headers.getlist("origin")
        if not all(map(self._is_our_origin, origins)):
            given = f"from the origin {cut(', '.join(origins), _LONGEST_QUOTE)}"
        elif "cross-site" in headers.getlist("sec-fetch-site") and not origins:
            given = "from another site's page"
        else:
            return None
        return Forbidden(
            f"Without an API key the service answers no requests of other sites' pages, and this one comes {given}: "
            "start the service with a key (TUNEWRIGHT_API_KEY), or with --allowed-host NAME if the page is yours.",
            code="origin_not_allowed",
        )

    def _is_our_origin(self, origin: str) -> bool:
        scheme, _, host = origin.partition("://")
        return scheme in ("http", "https") and self._is_ours(host)

    def _is_name_of_ours(self, host: str) -> bool:
        """Whether `host`, with or without a port, names this machine or is allowed."""
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].lower().removesuffix(".")
        return name == "localhost" or name in self._allowed or _is_loopback(name)


def _has_route(scope: Scope) -> bool:
    """Whether a route takes the request. Without one the application reads no body, and answers 404 or 405."""
    return any(route.matches(scope)[0] is Match.FULL for route in scope["app"].routes)


def wrong_type(headers: Headers, *, takes_form: bool) -> TunewrightError | None:
    """The reason why a body is refused that has another content type than its route reads."""
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return None
    given = headers.getlist("content-type")
    kind = given[0].partition(";")[0].strip() if len(given) == 1 else ""
    if _JSON.fullmatch(kind) or (takes_form and kind.lower() == "multipart/form-data"):
        return None
    shown = cut(", ".join(given), _LONGEST_QUOTE) or "missing"
    return InvalidRequest(
        f"The body is not read as JSON, since its Content-Type is {shown}: send it "
        "with the header Content-Type: application/json.",
        code="invalid_json",
    )


def _is_loopback(name: str) -> bool:
    """Whether an address, written in any way that browsers and curl accept (127.1 is 127.0.0.1), is loopback."""
    if _NUMERIC.fullmatch(name):
        try:
            return socket.inet_aton(name)[0] == 127
        except OSError:
            return False
    try:
        return ipaddress.IPv6Address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
