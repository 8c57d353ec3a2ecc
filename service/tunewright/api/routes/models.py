"""`/v1/models`: bases and what was made of them."""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import Iterator
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from tunewright.api.context import Context, ServiceContext
from tunewright.api.errors import responses
from tunewright.api.schemas.common import Deleted, Page
from tunewright.api.schemas.models import ModelObject
from tunewright.errors import InvalidRequest, NotFound
from tunewright.store.records import TunedModel

router = APIRouter(prefix="/v1/models", tags=["Models"])


@router.get("", summary="List models", responses=responses())
def list_models(context: Context) -> Page[ModelObject]:
    """The bases, then tuned models, newest first. Checkpoints are listed while they are loaded."""
    bases = [ModelObject.of_engine(engine) for engine in context.store.engines.list()]
    tuned = [
        ModelObject.of(*context.store.models.resolve(model.name))  # type: ignore[arg-type]
        for model in context.store.models.list()[0]
        if model.checkpoint_step is None or model.desired == "loaded"
    ]
    return Page(data=bases + tuned, has_more=False)


@router.get(
    "/{model:path}/download",
    summary="Download a tuned model",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "A tar of its folder: PEFT's for an adapter, transformers' for a full model.",
            "content": {
                "application/x-tar": {"schema": {"type": "string", "format": "binary"}, "example": ""}
            },
        },
        **responses(400, 404),
    },
)
def download(context: Context, model: str) -> StreamingResponse:
    """`tar xf` it, and `peft.PeftModel.from_pretrained` or `transformers` load the folder as it is."""
    tuned = _tuned(context, model)
    folder = context.data.artifact(tuned.sha256)
    name = tuned.name.replace(":", "-").replace("/", "-")
    return StreamingResponse(
        _tar(folder, name),
        media_type="application/x-tar",
        headers={"Content-Disposition": f'attachment; filename="{name}.tar"'},
    )


@router.get("/{model:path}", summary="Retrieve a model", responses=responses(404))
def retrieve(context: Context, model: str) -> ModelObject:
    tuned, engine, held = context.store.models.resolve(model)
    if tuned is not None:
        return ModelObject.of(tuned, engine, held)
    if engine is not None:
        return ModelObject.of_engine(engine)
    raise _not_found(model)


@router.delete("/{model:path}", summary="Delete a tuned model", responses=responses(400, 404, 503))
async def delete(context: Context, model: str) -> Deleted:
    """Unloads it first. Bases cannot be deleted, nor what an unfinished job starts from."""
    tuned = await asyncio.to_thread(_tuned, context, model)
    user = await asyncio.to_thread(context.store.jobs.job_that_starts_from, tuned.sha256)
    if user is not None:
        raise InvalidRequest(
            f"{model} is what job {user} starts from: wait for it, or cancel it.", code="model_in_use"
        )
    if tuned.kind == "adapter":
        await context.control({"op": "unload", "model": tuned.name})
    await asyncio.to_thread(_remove, context, tuned)
    return Deleted(id=tuned.name, object="model")


def _remove(context: ServiceContext, tuned: TunedModel) -> None:
    context.store.models.delete(tuned.name)
    if context.store.models.by_sha256(tuned.sha256) is None:
        context.data.remove_artifact(tuned.sha256)


def _tuned(context: ServiceContext, name: str) -> TunedModel:
    tuned = context.store.models.get(name)
    if tuned is not None:
        return tuned
    if context.store.engines.get(name) is not None:
        raise InvalidRequest(
            f"{name} is a base: it can be neither deleted nor downloaded here.", param="model"
        )
    raise _not_found(name)


def _not_found(name: str) -> NotFound:
    return NotFound(f"No such model: {name!r}.", param="model", code="model_not_found")


def _tar(folder: Path, name: str) -> Iterator[bytes]:
    """A tar of the folder's files, block by block: never the whole in memory."""
    for path in sorted(folder.iterdir()):
        info = tarfile.TarInfo(f"{name}/{path.name}")
        status = path.stat()
        info.size, info.mtime, info.mode = status.st_size, int(status.st_mtime), 0o644
        yield info.tobuf(tarfile.PAX_FORMAT)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                yield block
        yield b"\0" * (-info.size % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)
