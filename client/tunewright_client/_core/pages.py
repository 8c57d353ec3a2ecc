"""A page of a list and the call for the next page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import httpx2

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
    """One page of a list. `next_call` gives the next page; it is None on the last one."""

    data: list[T]
    has_more: bool
    last_id: str | None
    next_call: Call[PageData[T]] | None


def list_call(path: str, parse: Callable[[Any], T], params: Mapping[str, Any]) -> Call[PageData[T]]:
    """The call for a list. `parse` makes an item of its JSON; `params` are the query, with `limit` and `after`."""

    def parse_page(response: httpx2.Response) -> PageData[T]:
        body = _Body.model_validate_json(response.content)
        last = body.last_id or (str(body.data[-1].get("id")) if body.data else None)
        # A repeated cursor, or an empty page that claims not to be the last, would make the iteration endless.
        more = body.has_more and bool(body.data) and last is not None and last != params.get("after")
        following = list_call(path, parse, {**params, "after": last}) if more else None
        return PageData([parse(item) for item in body.data], body.has_more, last, following)

    return Call("GET", path, parse_page, params=params)
