"""Fields of multipart forms. FastAPI ignores those that a route does not name, and all but one of those that are there
several times; here they are refused, as in JSON."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, get_origin

from fastapi import Depends, Request
from fastapi.routing import APIRoute

from tunewright.errors import InvalidRequest


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
