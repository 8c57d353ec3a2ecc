"""A page of a list that goes on to the next pages by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

from .._core.call import Call
from .._core.pages import PageData

T = TypeVar("T")
AsyncGet = Callable[[Call[PageData[T]]], Awaitable[PageData[T]]]


class AsyncPage(Generic[T]):
    """One page of a list. `data` has this page's items; `async for` gives those of all further pages too,
    each page asked for when it is needed."""

    def __init__(self, page: PageData[T], get: AsyncGet[T]) -> None:
        self.data = page.data
        self.has_more = page.has_more
        self.last_id = page.last_id
        self._next_call = page.next_call
        self._get = get

    async def next_page(self) -> AsyncPage[T] | None:
        """The page after this one, or None."""
        return None if self._next_call is None else AsyncPage(await self._get(self._next_call), self._get)

    async def __aiter__(self) -> AsyncIterator[T]:
        page: AsyncPage[T] | None = self
        while page is not None:
            for item in page.data:
                yield item
            page = await page.next_page()

    def __repr__(self) -> str:
        return f"AsyncPage(data={self.data!r}, has_more={self.has_more})"


class AsyncPager(Generic[T]):
    """A list that has not been asked for yet: `await` it for its first page, or `async for` all items."""

    def __init__(self, call: Call[PageData[T]], get: AsyncGet[T]) -> None:
        self._call = call
        self._get = get

    def __await__(self) -> Generator[Any, None, AsyncPage[T]]:
        return self._first().__await__()

    async def __aiter__(self) -> AsyncIterator[T]:
        async for item in await self._first():
            yield item

    async def _first(self) -> AsyncPage[T]:
        return AsyncPage(await self._get(self._call), self._get)
