"""`/v1/adapters`: adapters that jobs made or that were registered, and their state in the engines."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, File, Form, Header, Query, UploadFile
from fastapi.responses import StreamingResponse

from tunewright.api.adapters.registration import (
    Registration,
    register_folder,
    register_from_hub,
    register_upload,
)
from tunewright.api.adapters.schemas import BASE, FOLDER, LOAD, RegisterAdapter, Suffix
from tunewright.api.gateway.routing import refuse_unservable
from tunewright.api.http.context import Context, ServiceContext
from tunewright.api.http.errors import responses
from tunewright.api.http.forms import FormFault, FormRoute
from tunewright.api.http.wire import After, Deleted, Force, Page, User, page_of
from tunewright.api.models.artifacts import TAR, remove, tar_of
from tunewright.api.models.schemas import AdapterObject, AdapterState
from tunewright.errors import EngineUnavailable, InvalidRequest, NotFound, quoted
from tunewright.store.listings import AdapterFilter
from tunewright.store.records import ModelWithEngine, TunedModel
from tunewright.store.states import ModelKind, ModelState
from tunewright.wire import Text

router = APIRouter(prefix="/v1/adapters", tags=["Adapters"], route_class=FormRoute)

IdempotencyKey = Annotated[
    str | None, Header(max_length=255, description="The same key gives the same adapter.")
]


@router.post("", summary="Register an adapter", responses=responses(400, 413, 429, 503, 507))
async def register(
    context: Context, body: RegisterAdapter, idempotency_key: IdempotencyKey = None
) -> AdapterObject:
    """Register an adapter that was not trained here, from a folder of the server or from a hub; it is checked against
    its base first."""
    asked = Registration(body.base, body.suffix, body.load, idempotency_key)
    if body.path is not None:
        model = await context.slow.run(register_folder, context, body.path, asked)
    else:
        assert body.hub_id is not None
        model = await context.slow.run(register_from_hub, context, body.hub_id, body.revision, asked)
    return await asyncio.to_thread(_show, context, model.name)


@router.post("/upload", summary="Upload an adapter", responses=responses(400, 413, 429, 503, 507))
async def upload(
    context: Context,
    fault: FormFault,
    file: Annotated[
        list[UploadFile],
        File(
            max_length=2,
            description="A .tar, .tar.gz or .zip of the adapter's folder; or its two files, adapter_config.json and "
            "adapter_model.safetensors (of mlx-lm adapters.safetensors), as two parts of this name.",
        ),
    ],
    base: Annotated[Text | None, Form(max_length=128, description=BASE)] = None,
    suffix: Annotated[Suffix | None, Form()] = None,
    load: Annotated[bool, Form(description=LOAD)] = True,
    folder: Annotated[Text | None, Form(max_length=512, description=FOLDER)] = None,
    idempotency_key: IdempotencyKey = None,
) -> AdapterObject:
    """Register an adapter that was not trained here; it is checked against its base first."""
    if fault is not None:
        raise fault
    asked = Registration(base, suffix, load, idempotency_key)
    model = await context.slow.run(register_upload, context, file, asked, folder)
    return _show(context, model.name)


@router.get("", summary="List adapters", responses=responses(400))
def list_adapters(
    context: Context,
    base: Annotated[Text | None, Query(description="Only adapters of this base.")] = None,
    job: Annotated[Text | None, Query(description="Only what this job made.")] = None,
    state: Annotated[AdapterState | None, Query(description="Only adapters in this state.")] = None,
    loaded: Annotated[bool | None, Query(description="Only adapters that are loaded, or are not.")] = None,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Page[AdapterObject]:
    """Newest first, checkpoints among them."""
    wanted = AdapterFilter(base=base, job_id=job, state=state, loaded=loaded)
    found, more = context.store.listings.adapters(wanted, after=after, limit=limit)
    return Page(**page_of([AdapterObject.of(listed) for listed in found], more))


@router.get(
    "/{adapter:path}/download",
    summary="Download an adapter",
    response_class=StreamingResponse,
    responses={**TAR, **responses(404, 503, 507)},
)
def download(context: Context, adapter: str) -> StreamingResponse:
    """`tar xf` it, and `peft.PeftModel.from_pretrained` loads the folder as it is."""
    try:
        return tar_of(context, _get(context, adapter))
    except FileNotFoundError as error:
        raise _not_found(adapter) from error


@router.post("/{adapter:path}/load", summary="Load an adapter", responses=responses(400, 404, 503, 507))
async def load(
    context: Context,
    adapter: str,
    force: Annotated[bool, Query(description="Serve it although it is quarantined.")] = False,
    user: User = None,
) -> AdapterObject:
    """Load it into the running engine, now and after every restart; other requests continue meanwhile. With `force`, a
    quarantined adapter is served all the same, and `parity.forced` records who did it and when."""
    if force:
        model = await asyncio.to_thread(_get, context, adapter)
        await asyncio.to_thread(context.store.checks.force, model.id, who=user)
    return await _control(context, adapter, "load")


@router.post("/{adapter:path}/unload", summary="Unload an adapter", responses=responses(404, 503, 507))
async def unload(context: Context, adapter: str) -> AdapterObject:
    """Unload it after its last request, for which this waits up to `--drain-timeout`; after that the answer's state is
    `draining`, and it is unloaded later. Unpins it. Where loading on demand is on, the next request loads it again."""
    model = await asyncio.to_thread(_get, context, adapter)
    await asyncio.to_thread(context.store.models.pin, model.name, False)
    return await _control(context, adapter, "unload")


@router.post("/{adapter:path}/pin", summary="Pin an adapter", responses=responses(400, 404, 503, 507))
async def pin(context: Context, adapter: str) -> AdapterObject:
    """Load it, and never evict it for another."""
    model = await asyncio.to_thread(_get, context, adapter)
    shown = await _control(context, adapter, "load")
    await asyncio.to_thread(context.store.models.pin, model.name, True)
    return shown.model_copy(update={"pinned": True})


@router.post("/{adapter:path}/unpin", summary="Unpin an adapter", responses=responses(404, 507))
async def unpin(context: Context, adapter: str) -> AdapterObject:
    """It stays loaded until it is the least recently used one and its place is needed."""
    model = await asyncio.to_thread(_get, context, adapter)
    await asyncio.to_thread(context.store.models.pin, model.name, False)
    return await asyncio.to_thread(_show, context, model.name)


@router.post("/{adapter:path}/check", summary="Check an adapter", responses=responses(400, 404, 507))
def check(context: Context, adapter: str) -> AdapterObject:
    """Compare again what it changes in the engine with what it changes in peft. It is loaded for that; an adapter that
    is served stays served. The answer comes before the verdict: `parity.check_pending` is true until then."""
    model = _get(context, adapter)
    if model.state is ModelState.MERGE_ONLY:
        refuse_unservable(model)
    context.store.checks.request(model.id)
    return _show(context, model.name)


@router.get("/{adapter:path}", summary="Retrieve an adapter", responses=responses(404))
def retrieve(context: Context, adapter: str) -> AdapterObject:
    """By its id or its model name."""
    return _show(context, _get(context, adapter).name)


@router.delete("/{adapter:path}", summary="Delete an adapter", responses=responses(400, 404, 503, 507))
async def delete(context: Context, adapter: str, force: Force = False, user: User = None) -> Deleted:
    """Unload and delete it. Its weights are removed unless another model has the same ones. Refused while an unfinished
    job starts from it or an alias has it."""
    model = await asyncio.to_thread(_get, context, adapter)
    await remove(context, model, force=force, who=user)
    return Deleted(id=model.id, object="adapter")


async def _control(context: ServiceContext, adapter: str, operation: str) -> AdapterObject:
    model = await asyncio.to_thread(_get, context, adapter)
    if operation == "load":
        refuse_unservable(model)
        await asyncio.to_thread(_check_base, context, model)
    wait = context.settings.serving.drain_timeout
    answer = await context.control({"op": operation, "model": model.name, "wait": wait})
    if "error" in answer:
        raise EngineUnavailable(
            f"{model.name} could not be {operation}ed: {answer['error']}",
            code=f"{operation}_failed",
            retry_after=5,
        )
    return await asyncio.to_thread(_show, context, model.name)


def _check_base(context: ServiceContext, model: TunedModel) -> None:
    """Raises InvalidRequest where the project may not use the base any more."""
    if context.store.bases.allowed() is not None and context.store.engines.get(model.base) is None:
        raise InvalidRequest(
            f"The base of {model.name} is not among those served here.",
            param="adapter",
            code="base_not_served",
        )


def _show(context: ServiceContext, name: str) -> AdapterObject:
    model, engine, held = context.store.models.resolve(name)
    if model is None:
        raise _not_found(name)
    return AdapterObject.of(ModelWithEngine(model, engine, held))


def _get(context: ServiceContext, adapter: str) -> TunedModel:
    model = context.store.models.get(adapter)
    if model is None or model.kind is not ModelKind.ADAPTER:
        raise _not_found(adapter)
    return model


def _not_found(adapter: str) -> NotFound:
    return NotFound(f"No such adapter: {quoted(adapter)}.", param="adapter", code="adapter_not_found")
