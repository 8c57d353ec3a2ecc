"""Deployments: `client.deployments`, and the Deployment that knows its client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr

from .._core import deployments
from .._errors import TunewrightError
from ..types import Deleted, DeploymentRecord
from .pages import Page

if TYPE_CHECKING:
    from .client import Tunewright


class Deployments:
    """`client.deployments`. A deployment is named by its id or by its model's name."""

    def __init__(self, client: Tunewright) -> None:
        self._client = client

    def create(self, model: str, engine: Mapping[str, Any] | None = None) -> Deployment:
        """Serve a model beside the bases: a full model (fully fine-tuned, merged or quantized), or one that
        the service was started with as deployable. It is started in the background: `wait` for it.

        `engine` is how, such as {"device": "cuda:1", "gpu_memory_utilization": 0.2} or, on the CPU,
        {"kv_cache_memory": "256MiB"}; what is left out is chosen. The same call again gives the same
        deployment.

        Raises BadRequestError where there is no room (with the numbers, and what would fit) or the model
        cannot be deployed, NotFoundError for an unknown model.
        """
        return self._client._fetch(deployments.create_deployment(self._make, model, engine))

    def list(self, after: str | None = None, limit: int | None = None) -> Page[Deployment]:
        """The deployments, newest first; `limit` is the size of a page."""
        return self._client._page(deployments.list_deployments(self._make, after, limit))

    def retrieve(self, deployment: str) -> Deployment:
        """One deployment as it is now. Raises NotFoundError."""
        return self._client._fetch(deployments.retrieve_deployment(self._make, deployment))

    def restart(self, deployment: str) -> Deployment:
        """Start one again that failed. One that runs is left as it is."""
        return self._client._fetch(deployments.restart_deployment(self._make, deployment))

    def logs(self, deployment: str, tail: int | None = None) -> str:
        """What its vLLM wrote since its last start; with `tail`, its last lines."""
        return self._client._fetch(deployments.deployment_logs(deployment, tail))

    def delete(
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
        return self._client._fetch(deployments.delete_deployment(deployment, force, timeout, user))

    def wait(
        self,
        deployment: str,
        *,
        timeout: float | None = None,
        poll_interval: float = 0.5,
        progress: bool = False,
        on_change: deployments.OnChange | None = None,
    ) -> Deployment:
        """Wait until it is ready, and return it; times are in seconds.

        - timeout: None waits for as long as it takes, also for a server that is away
        - progress: write a line to stderr when its state changes
        - on_change: called with it then

        Raises DeploymentFailedError with the reason, WaitTimeoutError, NotFoundError.
        """
        return self._client._run(
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

    def _make(self, data: Any) -> Deployment:
        deployment = Deployment.model_validate(data)
        deployment._deployments = self
        return deployment


class Deployment(DeploymentRecord):
    """A deployment as it was when it was read; its methods ask its client. A record does not change:
    `deployment = deployment.refresh()` reads a new one."""

    _deployments: Deployments | None = PrivateAttr(default=None)

    @property
    def _api(self) -> Deployments:
        if self._deployments is None:
            raise TunewrightError(
                "this Deployment did not come from a client: use client.deployments with its id"
            )
        return self._deployments

    def refresh(self) -> Deployment:
        """The deployment as it is now."""
        return self._api.retrieve(self.id)

    def restart(self) -> Deployment:
        """See `client.deployments.restart`."""
        return self._api.restart(self.id)

    def logs(self, tail: int | None = None) -> str:
        """See `client.deployments.logs`."""
        return self._api.logs(self.id, tail)

    def delete(
        self, *, force: bool = False, timeout: float | None = None, user: str | None = None
    ) -> Deleted:
        """See `client.deployments.delete`."""
        return self._api.delete(self.id, force=force, timeout=timeout, user=user)

    def wait(
        self,
        *,
        timeout: float | None = None,
        poll_interval: float = 0.5,
        progress: bool = False,
        on_change: deployments.OnChange | None = None,
    ) -> Deployment:
        """See `client.deployments.wait`."""
        return self._api.wait(
            self.id, timeout=timeout, poll_interval=poll_interval, progress=progress, on_change=on_change
        )
