"""Lists that are not requested yet. The blocking client has none: its lists request their first page at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .._core.call import Call
from .._core.pages import PageData
from .pages import AsyncPage

if TYPE_CHECKING:
    from .http import AsyncHTTP

T = TypeVar("T")


class AsyncPager(Generic[T]):
    """A list that is not requested yet: `await` it for its first page, or use `async for` for all items."""

    def __init__(self, call: Call[PageData[T]], http: AsyncHTTP) -> None:
        self._call = call
        self._http = http

    def __await__(self) -> Generator[Any, None, AsyncPage[T]]:
        return self._first().__await__()

    async def __aiter__(self) -> AsyncIterator[T]:
        async for item in await self._first():
            yield item

    async def _first(self) -> AsyncPage[T]:
        return AsyncPage(await self._http.fetch(self._call), self._http)
