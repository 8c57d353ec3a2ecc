"""Deployments: their calls, and waiting until one is ready."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import httpx

from .._errors import DeploymentFailedError, TunewrightError, WaitTimeoutError
from ..types import Deleted, DeploymentRecord
from . import endpoints
from .call import Call, Context
from .flow import Flow, Notify, Sleep, fetch
from .pages import PageData, list_call
from .progress import plain
from .wait import left, wanted, worth_waiting

D = TypeVar("D", bound=DeploymentRecord)
Make = Callable[[Any], D]  # parses a deployment and ties it to the client it came from
OnChange = Callable[[Any], Awaitable[None] | None]


def create_deployment(make: Make[D], model: str, engine: Mapping[str, Any] | None) -> Call[D]:
    body = {"model": model, **({} if engine is None else {"engine": dict(engine)})}
    return Call("POST", "/deployments", _made(make), json=body)


def list_deployments(make: Make[D], after: str | None, limit: int | None) -> Call[PageData[D]]:
    return list_call("/deployments", make, {"after": after, "limit": limit})


def retrieve_deployment(make: Make[D], deployment: str) -> Call[D]:
    return Call("GET", endpoints.path_of("deployments", deployment), _made(make))


def restart_deployment(make: Make[D], deployment: str) -> Call[D]:
    return Call("POST", endpoints.path_of("deployments", deployment) + "/restart", _made(make))


def deployment_logs(deployment: str, tail: int | None) -> Call[str]:
    return endpoints.text_of(endpoints.path_of("deployments", deployment) + "/logs", {"tail": tail})


def delete_deployment(deployment: str, force: bool, timeout: float | None, user: str | None) -> Call[Deleted]:
    """Takes as long as its requests do."""
    params = {"force": "true" if force else None, "timeout": None if timeout is None else f"{timeout:g}"}
    return Call(
        "DELETE",
        endpoints.path_of("deployments", deployment),
        lambda response: Deleted.model_validate_json(response.content),
        params=params,
        headers={"x-tunewright-user": user} if user else {},
        slow=True,
    )


def until_deployed(
    context: Context,
    call: Call[D],
    name: str,
    *,
    timeout: float | None,
    poll_interval: float,
    on_change: OnChange | None,
    progress: bool,
) -> Flow[D]:
    """Look at a deployment (by `call`) every `poll_interval` seconds until it is ready; times are in seconds.

    A server that is away is waited for, as in `wait.job_end`.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    latest: D | None = None
    failures = 0
    trouble: TunewrightError | None = None
    while True:
        try:
            found = yield from fetch(context.capped(left(deadline)), call)
        except TunewrightError as error:
            if not worth_waiting(error, failures, context.max_retries):
                raise
            failures, trouble = failures + 1, error
            delay = max(wanted(error), poll_interval)
        else:
            changed = latest is None or (found.state, found.reason) != (latest.state, latest.reason)
            latest, failures, trouble, delay = found, 0, None, poll_interval
            if changed and progress:
                _tell(found)
            if changed and on_change is not None:
                yield Notify(on_change, found)
            if found.state == "ready":
                return found
            if found.state in ("failed", "draining"):
                why = found.reason or "it is being taken down"
                raise DeploymentFailedError(f"{found.model} is {found.state}: {why}", found)
        if deadline is not None:
            delay = min(delay, deadline - time.monotonic())
            if delay <= 0:
                state = f"is still {latest.state}" if latest else "could not be read"
                raise WaitTimeoutError(f"{name} {state} after {timeout:g} seconds") from trouble
        yield Sleep(delay)


def _tell(found: DeploymentRecord) -> None:
    """A line on stderr for each change."""
    reason = f": {found.reason}" if found.reason else ""
    print(plain(f"{found.model}  {found.state}{reason}"), file=sys.stderr, flush=True)


def _made(make: Make[D]) -> Callable[[httpx.Response], D]:
    return lambda response: make(response.json())
