"""Parameters in the query of a URL that a route does not have are refused, as unknown fields of bodies and forms are:
FastAPI ignores them, and a list with a misspelt filter would be a list of everything."""

from __future__ import annotations

from urllib.parse import parse_qsl

from fastapi import FastAPI
from fastapi.dependencies.utils import get_flat_dependant
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from tunewright.errors import InvalidRequest, cut

_METADATA, _READING = frozenset({"metadata"}), frozenset({"columns", "tags"})
_PAIRS = {
    "/v1/batches": _METADATA,
    "/v1/cleanings": _METADATA,
    "/v1/evaluations": _METADATA,
    "/v1/exports": _METADATA,
    "/v1/fine_tuning/jobs": _METADATA,
    "/v1/files/{file_id}/report": _READING,
    "/v1/files/{file_id}/report.svg": _READING,
}
"""What routes read themselves, as `name[key]=value`."""


def hold_to_queries(app: FastAPI) -> None:
    """Have every route that has parameters in its query refuse others."""
    for route in app.router.routes:
        if not isinstance(route, APIRoute):
            continue
        names = {field.alias for field in get_flat_dependant(route.dependant).query_params}
        pairs = _PAIRS.get(route.path_format, frozenset())
        if names:
            route.app = _Held(route.app, frozenset(names), frozenset(names | pairs))


class _Held:
    """`names` are parameters; `pairs` may also be `name[]`, as openai sends lists, or `name[key]`."""

    def __init__(self, app: ASGIApp, names: frozenset[str], pairs: frozenset[str]) -> None:
        self._app = app
        self._names = names
        self._pairs = pairs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = scope["query_string"].decode("latin-1")
        for name, _ in parse_qsl(query, keep_blank_values=True) if query else ():
            begin, bracket, _ = name.partition("[")
            if name not in self._names and not (bracket and begin in self._pairs and name.endswith("]")):
                raise InvalidRequest(
                    f"Unknown parameter in the URL: {cut(name, 64)}. There are {', '.join(sorted(self._names))}.",
                    param=cut(name, 64),
                    code="unknown_parameter",
                )
        await self._app(scope, receive, send)
