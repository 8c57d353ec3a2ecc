"""`/v1/deployments`: models that are served beside the bases, each by an engine of its own."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import PlainTextResponse, StreamingResponse

from tunewright.api.deployments.creation import deploy, deployed
from tunewright.api.deployments.schemas import CreateDeployment, DeploymentObject, HeldAdapter
from tunewright.api.http.context import Context, ServiceContext
from tunewright.api.http.errors import responses
from tunewright.api.http.names import register_names
from tunewright.api.http.wire import After, Deleted, Force, Page, User, page_of
from tunewright.api.jobs.events import text_of
from tunewright.engine.usage import Usage
from tunewright.errors import EngineUnavailable, InvalidRequest
from tunewright.log_files import parts_of_run, read
from tunewright.store.deployments import Deployed
from tunewright.store.listings import AdapterFilter

router = APIRouter(prefix="/v1/deployments", tags=["Deployments"])

_TAIL_LINES = 40
_MOST_ADAPTERS = 1000
_END_TIMEOUT = 15.0
"""Seconds for a drained engine to end and for the scheduler to notice that."""
_POLL_INTERVAL = 0.1

register_names("deployment", "logs", "restart")


@router.post("", summary="Deploy a model", responses=responses(400, 404, 503, 507))
def create(context: Context, body: CreateDeployment) -> DeploymentObject:
    """Start a vLLM for it beside the others. The answer comes at once; the deployment's state says when it is ready.
    The same request again gives the same deployment."""
    deployment = deploy(context, body.model, body.engine.asked())
    return _show(context, deployment.id)


@router.get("", summary="List deployments", responses=responses(400))
def list_deployments(
    context: Context, after: After = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> Page[DeploymentObject]:
    """Newest first."""
    found, more = context.store.deployments.list(after=after, limit=limit)
    usage = Usage()
    return Page(**page_of([_object(context, one, usage) for one in found], more))


@router.get(
    "/{deployment:path}/logs",
    summary="Read an engine's log",
    response_class=PlainTextResponse,
    responses={
        200: {
            "description": "Text.",
            "content": {"text/plain": {"example": "INFO Application startup complete.\n"}},
        },
        **responses(400, 404),
    },
)
def logs(
    context: Context,
    deployment: str,
    tail: Annotated[int | None, Query(ge=1, le=100_000, description="Only so many last lines.")] = None,
) -> StreamingResponse:
    """The output of vLLM since its last start; of much the newest 64 MiB. Empty before the first start."""
    return text_of(parts_of_run(_log(context, deployed(context, deployment))), tail)


@router.post(
    "/{deployment:path}/restart", summary="Start a deployment again", responses=responses(400, 404, 507)
)
def restart(context: Context, deployment: str) -> DeploymentObject:
    """Start a deployment that failed, or that waits for its next try. One that runs or starts is left as it is."""
    found, _ = deployed(context, deployment)
    if found.is_draining:
        raise InvalidRequest(
            f"{found.model} is being taken down: deploy it again when that is done.",
            code="deployment_draining",
        )
    context.store.deployments.restart(found.id)
    return _show(context, found.id)


@router.get("/{deployment:deployment}", summary="Retrieve a deployment", responses=responses(404))
def retrieve(context: Context, deployment: str) -> DeploymentObject:
    """By its id or its model's name."""
    return _show(context, deployment)


@router.delete(
    "/{deployment:deployment}", summary="Take a deployment down", responses=responses(400, 404, 503, 507)
)
async def delete(
    context: Context,
    deployment: str,
    force: Force = False,
    timeout: Annotated[
        float | None,
        Query(
            ge=0,
            le=86_400,
            allow_inf_nan=False,
            description="Seconds that running requests have to end; by default --drain-timeout.",
        ),
    ] = None,
    user: User = None,
) -> Deleted:
    """It takes no new requests; its engine ends after the running ones, and then the answer comes. Refused while an
    unfinished job trains on it, or an alias has it or an adapter on it. The model and the adapters are kept."""
    found, _ = await asyncio.to_thread(deployed, context, deployment)
    wait = context.settings.serving.drain_timeout if timeout is None else timeout
    store = context.store.deployments
    await asyncio.to_thread(store.drain, found.id, time.time() + wait, force=force, who=user)
    left = await asyncio.to_thread(store.get, found.id)
    until = (left[0].drain_until or 0.0) + _END_TIMEOUT if left else 0.0
    while left is not None:
        if time.time() > until:
            raise EngineUnavailable(
                f"{found.model} takes no new requests, and its engine has not ended yet: look again later.",
                code="deployment_draining",
            )
        await asyncio.sleep(_POLL_INTERVAL)
        left = await asyncio.to_thread(store.get, found.id)
    return Deleted(id=found.id, object="deployment")


def _show(context: ServiceContext, id_or_model: str) -> DeploymentObject:
    found = deployed(context, id_or_model)
    shown = _object(context, found, Usage())
    tail = [line.rstrip("\n") for line in read(parts_of_run(_log(context, found)), _TAIL_LINES)]
    return shown.model_copy(update={"log_tail": tail})


def _object(context: ServiceContext, found: Deployed, usage: Usage) -> DeploymentObject:
    deployment, engine = found
    record = context.workspace.engine(deployment.model) / "process.json"
    on_it, _ = context.store.listings.adapters(
        AdapterFilter(base=deployment.model), after=None, limit=_MOST_ADAPTERS
    )
    on_gpu = deployment.options["device"].startswith("cuda")
    return DeploymentObject.of(
        deployment,
        engine,
        memory=usage.memory(record),
        device_memory=usage.device_memory(record) if on_gpu else None,
        adapters=[
            HeldAdapter(model=one.model.name, id=one.model.id, state=one.held.state.value)
            for one in on_it
            if one.held is not None
        ],
        log_tail=None,
    )


def _log(context: ServiceContext, found: Deployed) -> Path:
    return context.workspace.engine(found[0].model) / "engine.log"
