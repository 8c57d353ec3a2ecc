"""The client: settings, the connection pool, and one attribute for each resource of the API."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import httpx2

from .._core import endpoints
from .._core.call import DEFAULT_MAX_RETRIES, LOOPBACK, Settings, check_http_client
from .._core.waiting import Wait
from .._errors import TunewrightError, WaitTimeoutError
from ..types import Ready
from .aliases import AsyncAliases
from .audit import AsyncAuditLogs
from .batches import AsyncBatches, AsyncUploads
from .cleanings import AsyncCleanings
from .deployments import AsyncDeployments
from .evaluations import AsyncEvaluations
from .exports import AsyncExports
from .graders import AsyncGraders
from .http import AsyncHTTP
from .jobs import AsyncJobs
from .organization import AsyncAdminApiKeys, AsyncApiKeys, AsyncProjects
from .resources import AsyncAdapters, AsyncChat, AsyncCompletions, AsyncFiles, AsyncModels
from .syntheses import AsyncSyntheses
from .usage import AsyncUsage
from .webhooks import AsyncWebhooks


class AsyncTunewright:
    # async-only begin
    """A client of a Tunewright server for asyncio.

    It takes the arguments of `Tunewright`, but an httpx2.AsyncClient as `http_client`. Its methods are awaited. A list
    is awaited for its first page, or iterated with `async for` over all items.

    Local files are read and written in the event loop, piece by piece. Raises ValueError for an address without
    http:// or https://.
    """

    # async-only end
    # sync-only: """A client of a Tunewright server.
    # sync-only:
    # sync-only: - base_url: the server's address, with or without /v1; by default TUNEWRIGHT_BASE_URL, else
    # sync-only:   http://127.0.0.1:8000
    # sync-only: - api_key: a key, a token, or a function that returns one and is called before each request; by
    # sync-only:   default TUNEWRIGHT_API_KEY; without either, no key is sent
    # sync-only: - timeout: seconds for each part of a request (connecting, writing, reading the next bytes), or an
    # sync-only:   httpx2.Timeout. By default 5 to connect, 60 for control requests, 660 for generations and files
    # sync-only: - max_retries: how many times a request is retried after a connection error, 408, 429 or 5xx
    # sync-only: - http_client: your own httpx2.Client (proxies, certificates); it is not closed with this client
    # sync-only: - ca_file: a PEM file with those whose certificates are trusted, instead of the system's; by default
    # sync-only:   TUNEWRIGHT_CA_FILE
    # sync-only:
    # sync-only: Threads may share a client. Raises ValueError for an address without http:// or https://.
    # sync-only: """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | Callable[[], str] | None = None,
        timeout: float | httpx2.Timeout | None = None,
        max_retries: int = DEFAULT_MAX_RETRIES,
        http_client: httpx2.AsyncClient | None = None,
        ca_file: str | os.PathLike[str] | None = None,
    ) -> None:
        check_http_client(http_client, httpx2.AsyncClient)
        settings = Settings.build(base_url, api_key, timeout, max_retries, ca_file)
        self._owns_connections = http_client is None
        if http_client is None:
            http_client = httpx2.AsyncClient(mounts=dict.fromkeys(LOOPBACK), verify=settings.certificates())
        self._use(AsyncHTTP(http_client, settings))

    def _use(self, http: AsyncHTTP) -> None:
        self._http = http
        self.files = AsyncFiles(http)
        self.jobs = AsyncJobs(http)
        self.exports = AsyncExports(http)
        self.cleanings = AsyncCleanings(http)
        self.evaluations = AsyncEvaluations(http)
        self.syntheses = AsyncSyntheses(http)
        self.batches = AsyncBatches(http)
        self.uploads = AsyncUploads(http)
        self.adapters = AsyncAdapters(http)
        self.models = AsyncModels(http)
        self.aliases = AsyncAliases(http)
        self.graders = AsyncGraders(http)
        self.deployments = AsyncDeployments(http)
        self.webhooks = AsyncWebhooks(http)
        self.projects = AsyncProjects(http)
        self.api_keys = AsyncApiKeys(http)
        self.admin_api_keys = AsyncAdminApiKeys(http)
        self.usage = AsyncUsage(http)
        self.audit_logs = AsyncAuditLogs(http)
        self.chat = AsyncChat(http)
        self.completions = AsyncCompletions(http)

    @property
    def base_url(self) -> str:
        """The server's address without /v1."""
        return self._http.settings.root

    def with_options(
        self, *, timeout: float | httpx2.Timeout | None = None, max_retries: int | None = None
    ) -> Self:
        """A client with another timeout or number of retries. It shares the connections of this one."""
        other = object.__new__(type(self))
        other._owns_connections = False
        other._use(AsyncHTTP(self._http.client, self._http.settings.with_options(timeout, max_retries)))
        return other

    async def health(self) -> dict[str, Any]:
        """{"status": "ok"} from a server that answers at all."""
        return await self._http.fetch(endpoints.health())

    async def ready(self) -> Ready:
        """Whether each part of the service is ready. A service that is not ready is no error."""
        return await self._http.fetch(endpoints.ready())

    async def wait_ready(self, timeout: float = 300.0, poll_interval: float = 0.5) -> Ready:
        """Wait until the service is ready. The server need not be up yet. Times are in seconds.

        Raises WaitTimeoutError, whose message says what was not ready.
        """
        wait = Wait(timeout, self._http.settings.max_retries)
        while True:
            try:
                state = await self._http.once(wait.request_seconds()).fetch(endpoints.ready())
            except TunewrightError as error:
                if not wait.tolerates(error):
                    raise
                reason = str(error)
            else:
                wait.succeeded()
                if state.ready:
                    return state
                reason = state.waiting_for or "the service gives no reason"
            delay = wait.pause(poll_interval)
            if delay is None:
                raise WaitTimeoutError(f"not ready after {timeout:g} seconds: {reason}") from wait.last_error
            await asyncio.sleep(delay)

    async def close(self) -> None:
        """Close the connections, unless they belong to another client."""
        if self._owns_connections:
            await self._http.client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self.base_url!r})"
