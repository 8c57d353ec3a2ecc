"""A page of a list that goes on to the next pages by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from .._core.call import Call
from .._core.pages import PageData

T = TypeVar("T")
Get = Callable[[Call[PageData[T]]], PageData[T]]


class Page(Generic[T]):
    """One page of a list. `data` has this page's items; iterating gives those of all further pages too, each
    page asked for when it is needed."""

    def __init__(self, page: PageData[T], get: Get[T]) -> None:
        self.data = page.data
        self.has_more = page.has_more
        self.last_id = page.last_id
        self._next_call = page.next_call
        self._get = get

    def next_page(self) -> Page[T] | None:
        """The page after this one, or None."""
        return None if self._next_call is None else Page(self._get(self._next_call), self._get)

    def __iter__(self) -> Iterator[T]:
        page: Page[T] | None = self
        while page is not None:
            yield from page.data
            page = page.next_page()

    def __repr__(self) -> str:
        return f"Page(data={self.data!r}, has_more={self.has_more})"
