"""Pages of a list."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Generic, TypeVar

from .._core.pages import PageData

if TYPE_CHECKING:
    from .http import AsyncHTTP

T = TypeVar("T")


class AsyncPage(Generic[T]):
    """One page of a list.

    `data` has the items of this page. Iteration (`async for`) gives those of all following pages too; each page is
    requested when it is needed.
    """

    def __init__(self, page: PageData[T], http: AsyncHTTP) -> None:
        self.data = page.data
        self.has_more = page.has_more
        self.last_id = page.last_id
        self._next_call = page.next_call
        self._http = http

    async def next_page(self) -> AsyncPage[T] | None:
        """The following page, or None."""
        if self._next_call is None:
            return None
        return AsyncPage(await self._http.fetch(self._next_call), self._http)

    async def __aiter__(self) -> AsyncIterator[T]:
        page: AsyncPage[T] | None = self
        while page is not None:
            for item in page.data:
                yield item
            page = await page.next_page()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(data={self.data!r}, has_more={self.has_more})"
