"""Downloads and removes the artifacts of models; shared by the routes of models and adapters."""

from __future__ import annotations

import asyncio
import os
import tarfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from fastapi.responses import StreamingResponse

from tunewright.api.http.context import ServiceContext
from tunewright.errors import EngineUnavailable
from tunewright.store.records import TunedModel
from tunewright.store.states import ModelKind

TAR: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A tar of its folder: PEFT's for an adapter, transformers' for a full model.",
        "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}, "example": ""}},
    }
}
"""The `responses` of a route that returns `tar_of`."""


def tar_of(context: ServiceContext, model: TunedModel) -> StreamingResponse:
    """The model's folder as a tar. Raises FileNotFoundError where it was removed meanwhile, ArtifactsUnavailable and
    StorageFull."""
    artifacts = context.workspace.artifacts
    with artifacts.keeping(model.sha256):  # until the files are open
        folder = artifacts.fetch(model.sha256)
        return tar_of_folder(folder, model.name.replace(":", "-").replace("/", "-"))


def tar_of_folder(folder: Path, name: str) -> StreamingResponse:
    """The files of a folder as a tar, as long as they are now. Raises FileNotFoundError."""
    files = _open(folder)
    return StreamingResponse(
        _tar(files, name),
        media_type="application/x-tar",
        headers={"Content-Disposition": f'attachment; filename="{name}.tar"'},
    )


async def remove(
    context: ServiceContext, model: TunedModel, *, force: bool = False, who: str | None = None
) -> None:
    """Unload a model after its last request, unlist it, and remove its weights unless another model has them.

    With `force` it is first taken out of its aliases, by `who`. Raises InvalidRequest where an unfinished job starts
    from it or, without `force`, an alias has it; EngineUnavailable where its requests do not end soon.
    """
    await asyncio.to_thread(context.store.models.refuse_needed, model, force=force)
    if force:
        await asyncio.to_thread(context.store.aliases.take_out, model.name, who=who)
    if model.kind is ModelKind.ADAPTER:
        wait = context.settings.serving.drain_timeout
        answer = await context.control({"op": "unload", "model": model.name, "wait": wait})
        if answer.get("state") == "draining":
            raise EngineUnavailable(
                f"{model.name} takes no new requests, but some still run after {wait:g} s (--drain-timeout): delete it "
                "again when they have ended.",
                code="model_draining",
            )
    await asyncio.to_thread(_unlist, context, model, force, who)


def _unlist(context: ServiceContext, model: TunedModel, force: bool, who: str | None) -> None:
    models = context.store.models
    models.delete(model, force=force, who=who)
    context.workspace.artifacts.remove(model.sha256, lambda: models.weights_in_use(model.sha256))


def _open(folder: Path) -> list[BufferedReader]:
    """Open all files of the folder, so that they can be read to the end even if the model is deleted meanwhile."""
    return [path.open("rb") for path in sorted(folder.iterdir())]


def _tar(files: list[BufferedReader], name: str) -> Iterator[bytes]:
    """A tar of the files, block by block, so that it is never in memory as a whole."""
    for file in files:
        info = tarfile.TarInfo(f"{name}/{Path(file.name).name}")
        status = os.fstat(file.fileno())
        info.size, info.mtime, info.mode = status.st_size, int(status.st_mtime), 0o644
        yield info.tobuf(tarfile.PAX_FORMAT)
        left = info.size  # it may grow meanwhile
        with file:
            while left and (block := file.read(min(left, 1 << 20))):
                left -= len(block)
                yield block
        yield b"\0" * (-info.size % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)
