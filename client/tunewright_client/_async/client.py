"""The asyncio client."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from .._core import endpoints, wait
from .._core.call import DEFAULT_MAX_RETRIES, LOOPBACK, Call, Context
from .._core.flow import Flow, fetch
from .._core.pages import PageData
from ..types import Ready
from .aliases import Aliases
from .deployments import AsyncDeployments
from .driver import AsyncDriver, AsyncStream
from .exports import AsyncExports
from .jobs import AsyncJobs
from .pages import AsyncPager
from .resources import Adapters, Chat, Completions, Files, Models

T = TypeVar("T")


class AsyncTunewright:
    """A client of a Tunewright server for asyncio. Takes what `Tunewright` takes, with an httpx.AsyncClient
    as `http_client`; its methods are awaited, its lists are awaited (a page) or read with `async for` (all
    items).

    Local files are read and written in the event loop, piece by piece. Raises ValueError for an address
    without http:// or https://.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float | httpx.Timeout | None = None,
        max_retries: int = DEFAULT_MAX_RETRIES,
        http_client: httpx.AsyncClient | None = None,
    ) -> None:
        self._context = Context.build(base_url, api_key, timeout, max_retries)
        self._owns_http = http_client is None
        self._http = http_client or httpx.AsyncClient(mounts=dict.fromkeys(LOOPBACK))
        self._add_resources()

    def _add_resources(self) -> None:
        self.files = Files(self)
        self.jobs = AsyncJobs(self)
        self.exports = AsyncExports(self)
        self.adapters = Adapters(self)
        self.models = Models(self)
        self.aliases = Aliases(self)
        self.deployments = AsyncDeployments(self)
        self.chat = Chat(self)
        self.completions = Completions(self)

    @property
    def base_url(self) -> str:
        """The server's address, without /v1."""
        return self._context.root

    def with_options(
        self, *, timeout: float | httpx.Timeout | None = None, max_retries: int | None = None
    ) -> Self:
        """This client with another timeout or number of retries; both share their connections."""
        other = object.__new__(type(self))
        other._context = self._context.with_options(timeout, max_retries)
        other._owns_http = False
        other._http = self._http
        other._add_resources()
        return other

    async def health(self) -> dict[str, Any]:
        """Whether the server answers at all: {"status": "ok"}."""
        return await self._fetch(endpoints.health())

    async def ready(self) -> Ready:
        """Whether the service can do its work, part by part. Not being ready is no error."""
        return await self._fetch(endpoints.ready())

    async def wait_ready(self, timeout: float = 300.0, poll_interval: float = 0.5) -> Ready:
        """Wait until the service is ready, also for a server that is not up yet; times are in seconds.

        Raises WaitTimeoutError, which says what was still missing.
        """
        return await self._run(wait.until_ready(self._context, timeout, poll_interval))

    async def close(self) -> None:
        """Close the connections, unless they belong to another client."""
        if self._owns_http:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self.base_url!r})"

    async def _run(self, flow: Flow[T]) -> T:
        return await AsyncDriver(self._http).run(flow)

    async def _fetch(self, call: Call[T]) -> T:
        return await self._run(fetch(self._context, call))

    def _page(self, call: Call[PageData[T]]) -> AsyncPager[T]:
        return AsyncPager(call, self._fetch)

    def _stream(self, flow: Flow[None]) -> AsyncStream[Any]:
        return AsyncStream(AsyncDriver(self._http), flow)
