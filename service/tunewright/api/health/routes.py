"""`/health` and `/ready`."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from tunewright import __version__
from tunewright.api.health.schemas import Component, Health, Ready
from tunewright.api.http.context import Context, ServiceContext
from tunewright.registry.bucket_state import BucketState
from tunewright.store.states import EngineState

router = APIRouter(tags=["Health"])
_HEARTBEAT_LATE = 20.0


@router.get("/health", summary="Liveness")
async def health() -> Health:
    """The api answers. No other component is checked."""
    return Health(version=__version__)


@router.get(
    "/ready",
    summary="Readiness, by component",
    responses={503: {"model": Ready, "description": "Something is not ready; its component says what."}},
)
def ready(context: Context, request: Request, response: Response) -> Ready:
    """200 when all required components are ready; deployments and the bucket of artifacts are not required.
    Reasons are shown only with the API key."""
    components = {"api": Component(ready=True, state="ready"), "scheduler": _process(context, "scheduler")}
    components["worker"] = _process(context, "worker").model_copy(update={"required": False})
    if context.workspace.remote is not None:
        components["artifacts"] = _bucket(context)
    deployed = {deployment.model for deployment, _ in context.store.deployments.all()}
    for engine in context.store.engines.list():
        components[f"engine:{engine.name}"] = Component(
            ready=engine.state is EngineState.READY and engine.reason is None,
            required=engine.name not in deployed,
            state=engine.state.value,
            reason=engine.reason,
            model=engine.name,
        )
    if not request.state.authorized:
        components = {name: c.model_copy(update={"reason": None}) for name, c in components.items()}
    everything = all(component.ready for component in components.values() if component.required)
    if not everything:
        response.status_code = 503
        response.headers["Retry-After"] = "2"
    return Ready(ready=everything, components=components)


def _bucket(context: ServiceContext) -> Component:
    """What the scheduler last found of the bucket of artifacts. What is cached is served without it."""
    state = BucketState.read(context.workspace.bucket_state)
    if state is None:
        return Component(ready=False, required=False, state="starting")
    named = "ready" if state.is_available else "unavailable"
    return Component(ready=state.is_available, required=False, state=named, reason=state.reason)


def _process(context: ServiceContext, name: str) -> Component:
    """The state of a process, which touches its heartbeat about every second.

    An old heartbeat means that it hangs or is being restarted.
    """
    try:
        age = time.time() - context.workspace.heartbeat(name).stat().st_mtime
    except FileNotFoundError:
        return Component(ready=False, state="starting")
    if age > _HEARTBEAT_LATE:
        limit = context.settings.processes.hang_timeout
        reason = f"no sign of life for {age:.0f} s; after {limit:.0f} s it is killed and started again"
        return Component(ready=False, state="late", reason=reason)
    return Component(ready=True, state="ready")
