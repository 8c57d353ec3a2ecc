"""Where a route has parameters in the query of its URL, others are refused, as unknown fields of bodies and forms are:
FastAPI ignores them, and a list with a misspelt filter would be a list of everything."""

from __future__ import annotations

from typing import Any, get_args, get_origin
from urllib.parse import parse_qsl

from fastapi import FastAPI
from fastapi.dependencies.utils import get_flat_dependant
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from tunewright.errors import InvalidRequest, cut

_METADATA, _READING = frozenset({"metadata"}), frozenset({"columns", "tags"})
_LISTS_OF_JOBS = (
    "/v1/batches", "/v1/cleanings", "/v1/evaluations", "/v1/exports", "/v1/fine_tuning/jobs", "/v1/syntheses",
)  # fmt: skip
_PAIRS = {
    **dict.fromkeys(_LISTS_OF_JOBS, _METADATA),
    "/v1/files/{file_id}/report": _READING,
    "/v1/files/{file_id}/report.svg": _READING,
}
"""What routes read themselves, as `name[key]=value`."""


def refuse_unknown_parameters(app: FastAPI) -> None:
    """Have every route that has parameters in its query refuse others."""
    for route in app.router.routes:
        if not isinstance(route, APIRoute):
            continue
        fields = get_flat_dependant(route.dependant).query_params
        if fields:
            lists = {f"{field.alias}[]" for field in fields if _is_list(field.field_info.annotation)}
            names = frozenset(lists.union(field.alias for field in fields))
            route.app = _Refusing(route.app, names, _PAIRS.get(route.path_format, frozenset()))


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is list or any(map(_is_list, get_args(annotation)))


class _Refusing:
    """`names` are parameters, lists also as `name[]`, as openai sends them; `pairs` are sent as `name[key]`."""

    def __init__(self, app: ASGIApp, names: frozenset[str], pairs: frozenset[str]) -> None:
        self._app = app
        self._names = names
        self._pairs = pairs
        known = names | {f"{name}[key]" for name in pairs}
        self._known = ", ".join(sorted(name for name in known if not name.endswith("[]")))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = scope["query_string"].decode("latin-1")
        for name, _ in parse_qsl(query, keep_blank_values=True) if query else ():
            begin, bracket, _ = name.partition("[")
            if name not in self._names and not (bracket and begin in self._pairs and name.endswith("]")):
                raise InvalidRequest(
                    f"Unknown parameter in the URL: {cut(name, 64)}. There are {self._known}.",
                    param=cut(name, 64),
                    code="unknown_parameter",
                )
        await self._app(scope, receive, send)
