"""Fields of multipart forms. FastAPI ignores those that a route does not name; here they are refused, as in JSON."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from fastapi import Depends, Request

from tunewright.errors import InvalidRequest


async def _given_fields(request: Request) -> Counter[str]:
    return Counter(name for name, _ in (await request.form()).multi_items())


GivenFields = Annotated[Counter[str], Depends(_given_fields)]
"""The names of the form's fields, and how often each is there."""


def check_fields(given: Counter[str], *known: str) -> None:
    """Raises InvalidRequest where the form has another field than the `known` ones, or one of them twice."""
    for name, count in given.items():
        if name not in known:
            raise InvalidRequest(
                f"Unknown parameter: {name[:64]}.", param=name[:64], code="unknown_parameter"
            )
        if count > 1:
            raise InvalidRequest(f"`{name}` is there {count} times: send it once.", param=name)
