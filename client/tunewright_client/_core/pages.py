"""A page of a list, and how to ask for the next one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import httpx

from ..types.base import Wire
from .call import Call

T = TypeVar("T")


class _Body(Wire):
    data: list[dict[str, Any]]
    has_more: bool = False
    first_id: str | None = None
    last_id: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class PageData(Generic[T]):
    """One page as the server sent it, and the call that gives the next one (None on the last)."""

    data: list[T]
    has_more: bool
    last_id: str | None
    next_call: Call[PageData[T]] | None


def list_call(path: str, make: Callable[[Any], T], params: Mapping[str, Any]) -> Call[PageData[T]]:
    """The call that lists what is at a path; `params` has limit, after and what else narrows the list."""

    def parse(response: httpx.Response) -> PageData[T]:
        body = _Body.model_validate_json(response.content)
        last = body.last_id or (str(body.data[-1].get("id")) if body.data else None)
        # A server that repeats its cursor, or says that an empty page is not the last, must not hold us for
        # ever.
        more = body.has_more and bool(body.data) and last is not None and last != params.get("after")
        following = list_call(path, make, {**params, "after": last}) if more else None
        return PageData([make(item) for item in body.data], body.has_more, last, following)

    return Call("GET", path, parse, params=params)
