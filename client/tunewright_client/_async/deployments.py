"""Deployments: `client.deployments`, and the Deployment that knows its client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr

from .._core import deployments
from .._errors import TunewrightError
from ..types import Deleted, DeploymentRecord
from .pages import AsyncPager

if TYPE_CHECKING:
    from .client import AsyncTunewright


class AsyncDeployments:
    """`client.deployments`. A deployment is named by its id or by its model's name."""

    def __init__(self, client: AsyncTunewright) -> None:
        self._client = client

    async def create(self, model: str, engine: Mapping[str, Any] | None = None) -> AsyncDeployment:
        """Serve a model beside the bases: a full model (fully fine-tuned, merged or quantized), or one that
        the service was started with as deployable. It is started in the background: `wait` for it.

        `engine` is how, such as {"device": "cuda:1", "gpu_memory_utilization": 0.2} or, on the CPU,
        {"kv_cache_memory": "256MiB"}; what is left out is chosen. The same call again gives the same
        deployment.

        Raises BadRequestError where there is no room (with the numbers, and what would fit) or the model
        cannot be deployed, NotFoundError for an unknown model.
        """
        return await self._client._fetch(deployments.create_deployment(self._make, model, engine))

    def list(self, after: str | None = None, limit: int | None = None) -> AsyncPager[AsyncDeployment]:
        """The deployments, newest first; `limit` is the size of a page."""
        return self._client._page(deployments.list_deployments(self._make, after, limit))

    async def retrieve(self, deployment: str) -> AsyncDeployment:
        """One deployment as it is now. Raises NotFoundError."""
        return await self._client._fetch(deployments.retrieve_deployment(self._make, deployment))

    async def restart(self, deployment: str) -> AsyncDeployment:
        """Start one again that failed. One that runs is left as it is."""
        return await self._client._fetch(deployments.restart_deployment(self._make, deployment))

    async def logs(self, deployment: str, tail: int | None = None) -> str:
        """What its vLLM wrote since its last start; with `tail`, its last lines."""
        return await self._client._fetch(deployments.deployment_logs(deployment, tail))

    async def delete(
        self,
        deployment: str,
        *,
        force: bool = False,
        timeout: float | None = None,
        user: str | None = None,
    ) -> Deleted:
        """Take it down: no new request reaches it, and those that run have `timeout` seconds to end (by
        default what the service allows). Returns when it is gone; the model stays.

        Raises BadRequestError where an unfinished job trains on it, or an alias has it or an adapter on it;
        with `force` they are taken out of aliases first, by `user`.
        """
        return await self._client._fetch(deployments.delete_deployment(deployment, force, timeout, user))

    async def wait(
        self,
        deployment: str,
        *,
        timeout: float | None = None,
        poll_interval: float = 0.5,
        progress: bool = False,
        on_change: deployments.OnChange | None = None,
    ) -> AsyncDeployment:
        """Wait until it is ready, and return it; times are in seconds.

        - timeout: None waits for as long as it takes, also for a server that is away
        - progress: write a line to stderr when its state changes
        - on_change: called with it then

        Raises DeploymentFailedError with the reason, WaitTimeoutError, NotFoundError.
        """
        return await self._client._run(
            deployments.until_deployed(
                self._client._context,
                deployments.retrieve_deployment(self._make, deployment),
                deployment,
                timeout=timeout,
                poll_interval=poll_interval,
                on_change=on_change,
                progress=progress,
            )
        )

    def _make(self, data: Any) -> AsyncDeployment:
        deployment = AsyncDeployment.model_validate(data)
        deployment._deployments = self
        return deployment


class AsyncDeployment(DeploymentRecord):
    """A deployment as it was when it was read; its methods ask its client. A record does not change:
    `deployment = deployment.refresh()` reads a new one."""

    _deployments: AsyncDeployments | None = PrivateAttr(default=None)

    @property
    def _api(self) -> AsyncDeployments:
        if self._deployments is None:
            raise TunewrightError(
                "this AsyncDeployment did not come from a client: use client.deployments with its id"
            )
        return self._deployments

    async def refresh(self) -> AsyncDeployment:
        """The deployment as it is now."""
        return await self._api.retrieve(self.id)

    async def restart(self) -> AsyncDeployment:
        """See `client.deployments.restart`."""
        return await self._api.restart(self.id)

    async def logs(self, tail: int | None = None) -> str:
        """See `client.deployments.logs`."""
        return await self._api.logs(self.id, tail)

    async def delete(
        self, *, force: bool = False, timeout: float | None = None, user: str | None = None
    ) -> Deleted:
        """See `client.deployments.delete`."""
        return await self._api.delete(self.id, force=force, timeout=timeout, user=user)

    async def wait(
        self,
        *,
        timeout: float | None = None,
        poll_interval: float = 0.5,
        progress: bool = False,
        on_change: deployments.OnChange | None = None,
    ) -> AsyncDeployment:
        """See `client.deployments.wait`."""
        return await self._api.wait(
            self.id, timeout=timeout, poll_interval=poll_interval, progress=progress, on_change=on_change
        )
