"""Forms with few, small fields beside their files."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette._utils import AwaitableOrContextManager
from starlette.datastructures import FormData
from starlette.responses import Response

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
