"""Where a route has parameters in the query of its URL, others are refused, as unknown fields of bodies and forms are:
FastAPI ignores them, and a list with a misspelt filter would be a list of everything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_flat_dependant
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from tunewright.errors import InvalidRequest, cut


class Pairs:
    """A dependency: what a query has as `name[key]=value`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, request: Request) -> dict[str, str]:
        begin = f"{self.name}["
        return {
            key.removeprefix(begin).removesuffix("]"): value
            for key, value in request.query_params.items()
            if key.startswith(begin) and key.endswith("]")
        }


def refuse_unknown_parameters(app: FastAPI) -> None:
    """Have every route that has parameters in its query refuse others."""
    for route in app.router.routes:
        if not isinstance(route, APIRoute):
            continue
        fields = get_flat_dependant(route.dependant).query_params
        if fields:
            lists = {f"{field.alias}[]" for field in fields if _is_list(field.field_info.annotation)}
            names = frozenset(lists.union(field.alias for field in fields))
            route.app = _Refusing(route.app, names, frozenset(_pairs_of(route.dependant)))


def _pairs_of(dependant: Dependant) -> Iterator[str]:
    if isinstance(dependant.call, Pairs):
        yield dependant.call.name
    for part in dependant.dependencies:
        yield from _pairs_of(part)


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
