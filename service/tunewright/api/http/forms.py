"""Forms with few, small fields beside their files.

FastAPI ignores fields that a route does not name, and all but one of those that are there several times; here they are
refused, as in JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, get_origin

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from starlette._utils import AwaitableOrContextManager
from starlette.datastructures import FormData
from starlette.responses import Response

from tunewright.errors import InvalidRequest

_MOST_FILES, _MOST_FIELDS = 8, 32
_LARGEST_FIELD = 2**20
"""Bytes. Fields are kept in memory, and files of up to the same size; larger files are spooled to disk."""


class _FormRequest(Request):
    def form(
        self,
        *,
        max_files: float = _MOST_FILES,
        max_fields: float = _MOST_FIELDS,
        max_part_size: int = _LARGEST_FIELD,
    ) -> AwaitableOrContextManager[FormData]:
        """As Starlette's, which takes a thousand of each. Other forms have no files, are slow to read, and are not."""
        if not self.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            self._form = FormData()
        return super().form(max_files=max_files, max_fields=max_fields, max_part_size=max_part_size)


class FormRoute(APIRoute):
    """The class of the routes that take forms."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_form(request: Request) -> Response:
            return await handle(_FormRequest(request.scope, request.receive))

        return handle_form


async def _fault_of_form(request: Request) -> InvalidRequest | None:
    route = request.scope["route"]
    assert isinstance(route, APIRoute), "only they have dependencies"
    fields = {field.alias: field.field_info.annotation for field in route.dependant.body_params}
    given = Counter(name for name, _ in (await request.form()).multi_items())
    for name, count in given.items():
        if name not in fields:
            return InvalidRequest(
                f"Unknown parameter: {name[:64]}.", param=name[:64], code="unknown_parameter"
            )
        if count > 1 and get_origin(fields[name]) is not list:
            return InvalidRequest(f"`{name}` is there {count} times: send it once.", param=name)
    return None


FormFault = Annotated[InvalidRequest | None, Depends(_fault_of_form)]
"""The error for a form with a field that the route does not have, or with one of them twice; None where there is none.
The route raises it, so that a missing or wrong field is told first."""
