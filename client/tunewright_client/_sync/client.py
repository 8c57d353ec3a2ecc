"""The blocking client."""

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
from .deployments import Deployments
from .driver import Driver, Stream
from .exports import Exports
from .jobs import Jobs
from .pages import Page
from .resources import Adapters, Chat, Completions, Files, Models

T = TypeVar("T")


class Tunewright:
    """A client of a Tunewright server.

    - base_url: the server's address, with or without /v1; else TUNEWRIGHT_BASE_URL, else
      http://127.0.0.1:8000
    - api_key: else TUNEWRIGHT_API_KEY, else none is sent
    - timeout: seconds for each part of a request (connecting, writing, the next bytes to read), or an
      httpx.Timeout. None, the default: 5 to connect, 60 for control requests, 660 for generations and files
    - max_retries: how often a request is tried again after a connection error, 408, 429 or 5xx
    - http_client: an httpx.Client of your own (proxies, certificates); it is not closed with this one

    May be used by several threads. Raises ValueError for an address without http:// or https://.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float | httpx.Timeout | None = None,
        max_retries: int = DEFAULT_MAX_RETRIES,
        http_client: httpx.Client | None = None,
    ) -> None:
        self._context = Context.build(base_url, api_key, timeout, max_retries)
        self._owns_http = http_client is None
        self._http = http_client or httpx.Client(mounts=dict.fromkeys(LOOPBACK))
        self._add_resources()

    def _add_resources(self) -> None:
        self.files = Files(self)
        self.jobs = Jobs(self)
        self.exports = Exports(self)
        self.adapters = Adapters(self)
        self.models = Models(self)
        self.aliases = Aliases(self)
        self.deployments = Deployments(self)
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

    def health(self) -> dict[str, Any]:
        """Whether the server answers at all: {"status": "ok"}."""
        return self._fetch(endpoints.health())

    def ready(self) -> Ready:
        """Whether the service can do its work, part by part. Not being ready is no error."""
        return self._fetch(endpoints.ready())

    def wait_ready(self, timeout: float = 300.0, poll_interval: float = 0.5) -> Ready:
        """Wait until the service is ready, also for a server that is not up yet; times are in seconds.

        Raises WaitTimeoutError, which says what was still missing.
        """
        return self._run(wait.until_ready(self._context, timeout, poll_interval))

    def close(self) -> None:
        """Close the connections, unless they belong to another client."""
        if self._owns_http:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self.base_url!r})"

    def _run(self, flow: Flow[T]) -> T:
        return Driver(self._http).run(flow)

    def _fetch(self, call: Call[T]) -> T:
        return self._run(fetch(self._context, call))

    def _page(self, call: Call[PageData[T]]) -> Page[T]:
        return Page(self._fetch(call), self._fetch)

    def _stream(self, flow: Flow[None]) -> Stream[Any]:
        return Stream(Driver(self._http), flow)
