"""Paths with repeated slashes, as clients make them of a base URL that ends with a slash: `/v1//chat/completions`."""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send


class SingleSlashes:
    """Takes repeated slashes of a path for one. Slashes that are sent as `%2F` are left, being part of a name.

    It must come before whatever reads the path, such as the limits of bodies.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = scope.get("raw_path") or b""
        if b"//" in raw:
            raw = re.sub(rb"/{2,}", b"/", raw)
            scope = {**scope, "path": unquote(raw.decode("ascii")), "raw_path": raw}
        await self._app(scope, receive, send)
