"""Deployments: `client.deployments`, and the record with the methods of one deployment."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from pydantic import PrivateAttr

from .._core import deployments
from .._core.waiting import Wait, is_deployed, report_deployment, requested_delay
from .._errors import TunewrightError, WaitTimeoutError
from ..types import Deleted, DeploymentRecord
from .callbacks import AsyncCallback, notify
from .http import AsyncResource
from .pager import AsyncPager


class AsyncDeployments(AsyncResource):
    """`client.deployments`. A deployment is named by its id or by the name of its model."""

    async def create(self, model: str, engine: Mapping[str, Any] | None = None) -> AsyncDeployment:
        """Serve a model beside the bases: a full model (fully fine-tuned, merged or quantized), or one that the
        service was started with as deployable. It starts in the background: `wait` for it.

        `engine` has options such as {"device": "cuda:1", "gpu_memory_utilization": 0.2} or, on the CPU,
        {"kv_cache_memory": "256MiB"}; the service chooses the others. The same call again gives the same deployment.

        Raises BadRequestError where there is no room (with the numbers, and with what would fit) or the model cannot
        be deployed, NotFoundError for an unknown model.
        """
        return await self._http.fetch(deployments.create_deployment(self._parse, model, engine))

    def list(self, after: str | None = None, limit: int | None = None) -> AsyncPager[AsyncDeployment]:
        """All deployments, newest first; `limit` is the size of a page."""
        return self._http.page(deployments.list_deployments(self._parse, after, limit))

    async def retrieve(self, deployment: str) -> AsyncDeployment:
        """The present state of a deployment. Raises NotFoundError."""
        return await self._http.fetch(deployments.retrieve_deployment(self._parse, deployment))

    async def restart(self, deployment: str) -> AsyncDeployment:
        """Start a failed deployment again. A running one does not change."""
        return await self._http.fetch(deployments.restart_deployment(self._parse, deployment))

    async def logs(self, deployment: str, tail: int | None = None) -> str:
        """The output of its vLLM since the last start; with `tail`, only so many last lines."""
        return await self._http.fetch(deployments.deployment_logs(deployment, tail))

    async def delete(
        self,
        deployment: str,
        *,
        force: bool = False,
        timeout: float | None = None,
        user: str | None = None,
    ) -> Deleted:
        """Stop a deployment. It gets no new requests, and running ones have `timeout` seconds to end (by default the
        service's own limit). Returns when it is gone. The model is kept.

        Raises BadRequestError where an unfinished job trains on it, or an alias has it or an adapter on it; with
        `force` they are taken out of aliases first, by `user`.
        """
        return await self._http.fetch(deployments.delete_deployment(deployment, force, timeout, user))

    async def wait(
        self,
        deployment: str,
        *,
        timeout: float | None = None,
        poll_interval: float = 0.5,
        progress: bool = False,
        on_change: AsyncCallback[AsyncDeployment] | None = None,
    ) -> AsyncDeployment:
        """Wait until a deployment is ready, and return it. Times are in seconds.

        - timeout: None waits without a limit, also for a server that does not answer
        - progress: write a line to stderr when the state changes
        - on_change: called with the deployment when its state changes

        Raises DeploymentFailedError with the reason, WaitTimeoutError, NotFoundError.
        """
        wait = Wait(timeout, self._http.settings.max_retries)
        call = deployments.retrieve_deployment(self._parse, deployment)
        latest: AsyncDeployment | None = None
        while True:
            delay = poll_interval
            try:
                found = await self._http.once(wait.request_seconds()).fetch(call)
            except TunewrightError as error:
                if not wait.tolerates(error):
                    raise
                delay = max(requested_delay(error), poll_interval)
            else:
                wait.succeeded()
                changed = latest is None or (found.state, found.reason) != (latest.state, latest.reason)
                latest = found
                if changed and progress:
                    report_deployment(found)
                if changed and on_change is not None:
                    await notify(on_change, found)
                if is_deployed(found):
                    return found
            pause = wait.pause(delay)
            if pause is None:
                state = f"is still {latest.state}" if latest else "could not be read"
                raise WaitTimeoutError(f"{deployment} {state} after {timeout:g} seconds") from wait.last_error
            await asyncio.sleep(pause)

    def _parse(self, data: Any) -> AsyncDeployment:
        return AsyncDeployment.model_validate(data, context=self)


class AsyncDeployment(DeploymentRecord):
    """A deployment as it was when it was read, with methods that ask its client. The record does not change:
    `refresh` returns a new one."""

    _deployments: AsyncDeployments | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        """pydantic calls this with the validation context, which is the AsyncDeployments that read the record."""
        if isinstance(context, AsyncDeployments):
            self._deployments = context

    @property
    def _resource(self) -> AsyncDeployments:
        if self._deployments is None:
            raise TunewrightError(
                f"this {type(self).__name__} did not come from a client: use client.deployments with its id"
            )
        return self._deployments

    async def refresh(self) -> AsyncDeployment:
        """The present state of the deployment."""
        return await self._resource.retrieve(self.id)

    async def restart(self) -> AsyncDeployment:
        """See `client.deployments.restart`."""
        return await self._resource.restart(self.id)

    async def logs(self, tail: int | None = None) -> str:
        """See `client.deployments.logs`."""
        return await self._resource.logs(self.id, tail)

    async def delete(
        self, *, force: bool = False, timeout: float | None = None, user: str | None = None
    ) -> Deleted:
        """See `client.deployments.delete`."""
        return await self._resource.delete(self.id, force=force, timeout=timeout, user=user)

    async def wait(
        self,
        *,
        timeout: float | None = None,
        poll_interval: float = 0.5,
        progress: bool = False,
        on_change: AsyncCallback[AsyncDeployment] | None = None,
    ) -> AsyncDeployment:
        """See `client.deployments.wait`."""
        return await self._resource.wait(
            self.id, timeout=timeout, poll_interval=poll_interval, progress=progress, on_change=on_change
        )
