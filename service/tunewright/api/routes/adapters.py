"""`/v1/adapters`: what the engine holds, and loading and unloading by hand."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query

from tunewright.api.context import Context, ServiceContext
from tunewright.api.errors import responses
from tunewright.api.schemas.common import Page, page_of
from tunewright.api.schemas.models import AdapterObject
from tunewright.errors import EngineUnavailable, NotFound
from tunewright.store.records import TunedModel

router = APIRouter(prefix="/v1/adapters", tags=["Adapters"])


@router.get("", summary="List adapters", responses=responses(400))
def list_adapters(
    context: Context,
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Page[AdapterObject]:
    """Newest first, checkpoints among them."""
    models, more = context.store.models.list(kind="adapter", after=after, limit=limit)
    return Page(**page_of([_show(context, model.name) for model in models], more))


@router.post("/{adapter:path}/load", summary="Load an adapter", responses=responses(404, 503))
async def load(context: Context, adapter: str) -> AdapterObject:
    """Into the running engine, now and after every restart. Requests go on meanwhile."""
    return await _have(context, adapter, "load")


@router.post("/{adapter:path}/unload", summary="Unload an adapter", responses=responses(404, 503))
async def unload(context: Context, adapter: str) -> AdapterObject:
    """Requests that run with it finish; new ones are refused until it is loaded again."""
    return await _have(context, adapter, "unload")


@router.get("/{adapter:path}", summary="Retrieve an adapter", responses=responses(404))
def retrieve(context: Context, adapter: str) -> AdapterObject:
    """By its id or its model name."""
    return _show(context, _get(context, adapter).name)


async def _have(context: ServiceContext, adapter: str, operation: str) -> AdapterObject:
    model = await asyncio.to_thread(_get, context, adapter)
    answer = await context.control({"op": operation, "model": model.name})
    if "error" in answer:
        raise EngineUnavailable(
            f"{model.name} could not be {operation}ed: {answer['error']}",
            code=f"{operation}_failed",
            retry_after=5,
        )
    return await asyncio.to_thread(_show, context, model.name)


def _show(context: ServiceContext, name: str) -> AdapterObject:
    model, engine, held = context.store.models.resolve(name)
    if model is None:
        raise NotFound(f"No such adapter: {name!r}.", param="adapter", code="adapter_not_found")
    return AdapterObject.of(model, engine, held)


def _get(context: ServiceContext, adapter: str) -> TunedModel:
    model = context.store.models.get(adapter)
    if model is None or model.kind != "adapter":
        raise NotFound(f"No such adapter: {adapter!r}.", param="adapter", code="adapter_not_found")
    return model
