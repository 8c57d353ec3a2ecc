"""`/v1/models`: bases, aliases and tuned models."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, PlainTextResponse, StreamingResponse
from starlette.responses import Response

from tunewright import __version__
from tunewright.api.http.context import Context, ServiceContext
from tunewright.api.http.errors import responses
from tunewright.api.http.wire import Deleted, Force, Page, User
from tunewright.api.models.artifacts import TAR, remove, tar_of
from tunewright.api.models.report.card import card_of
from tunewright.api.models.report.contents import document_of, footer_of
from tunewright.api.models.report.document import Document
from tunewright.api.models.report.facts import gather
from tunewright.api.models.report.page import POLICY, page_of
from tunewright.api.models.schemas import ModelObject
from tunewright.errors import InvalidRequest, NotFound, quoted
from tunewright.registry.aliases import Alias
from tunewright.store.records import ModelWithEngine, TunedModel

router = APIRouter(prefix="/v1/models", tags=["Models"])


@router.get("", summary="List models", responses=responses())
def list_models(context: Context) -> Page[ModelObject]:
    """The bases and deployed models, aliases, then tuned models, newest first. Checkpoints are listed while they are
    loaded."""
    bases = [ModelObject.of_engine(engine) for engine in context.store.engines.bases()]
    aliases = _aliases(context, context.store.aliases.list()[0])
    tuned = [ModelObject.of(listed) for listed in context.store.listings.models()]
    return Page(data=bases + aliases + tuned, has_more=False)


@router.get(
    "/{model:path}/download",
    summary="Download a tuned model",
    response_class=StreamingResponse,
    responses={**TAR, **responses(400, 404, 503, 507)},
)
def download(context: Context, model: str) -> StreamingResponse:
    """`tar xf` it, and `peft.PeftModel.from_pretrained` or `transformers` load the folder as it is."""
    tuned = _tuned(context, model)
    try:
        return tar_of(context, tuned)
    except FileNotFoundError as error:
        raise _not_found(model) from error


@router.get(
    "/{model:path}/report",
    summary="Report on a model",
    response_class=HTMLResponse,
    responses={
        200: {
            "description": "A page, without scripts, in one file.",
            "content": {"text/html": {"example": "<!doctype html>..."}},
        },
        **responses(400, 404, 429, 503),
    },
)
async def report(context: Context, model: str) -> Response:
    """All that is known of a base or a tuned model, for a reviewer: options and losses of its training, its data,
    parity, evaluations with intervals, gates and lineage. Of an alias with one target, that is reported on."""
    document = await context.measuring.run(_document, context, model)
    page = page_of(document, footer_of(__version__))
    return HTMLResponse(
        page, headers={"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
    )


@router.get(
    "/{model:path}/card",
    summary="Make a model's card",
    response_class=PlainTextResponse,
    responses={
        200: {
            "description": "Markdown with the front matter that hubs read: the README.md of a repository.",
            "content": {"text/markdown": {"example": "---\nlibrary_name: peft\n---\n\n# support\n"}},
        },
        **responses(400, 404, 429, 503),
    },
)
async def card(context: Context, model: str) -> Response:
    """The report without its pictures."""
    document = await context.measuring.run(_document, context, model)
    return PlainTextResponse(card_of(document, footer_of(__version__)), media_type="text/markdown")


def _document(context: ServiceContext, model: str) -> Document:
    return document_of(gather(context, model))


@router.get("/{model:path}", summary="Retrieve a model", responses=responses(404))
def retrieve(context: Context, model: str) -> ModelObject:
    alias = context.store.aliases.get(model)
    if alias is not None:
        return _aliases(context, [alias])[0]
    tuned, engine, held = context.store.models.resolve(model)
    if tuned is not None:
        return ModelObject.of(ModelWithEngine(tuned, engine, held))
    if engine is not None:
        return ModelObject.of_engine(engine)
    raise _not_found(model)


@router.delete("/{model:path}", summary="Delete a tuned model", responses=responses(400, 404, 503, 507))
async def delete(context: Context, model: str, force: Force = False, user: User = None) -> Deleted:
    """Unload and delete it. Refused for bases and deployed models, and for models from which an unfinished job starts
    or that an alias has."""
    tuned = await asyncio.to_thread(_tuned, context, model)
    await remove(context, tuned, force=force, who=user)
    return Deleted(id=tuned.name, object="model")


def _aliases(context: ServiceContext, aliases: Sequence[Alias]) -> list[ModelObject]:
    names = {target.model for alias in aliases for target in alias.targets}
    if not names:
        return []
    models = {engine.name: ModelObject.of_engine(engine) for engine in context.store.engines.bases()}
    models |= {name: ModelObject.of(listed) for name, listed in context.store.listings.named(names).items()}
    return [ModelObject.of_alias(alias, models) for alias in aliases]


def _tuned(context: ServiceContext, name: str) -> TunedModel:
    tuned = context.store.models.get(name)
    if tuned is not None:
        return tuned
    if context.store.aliases.get(name) is not None:
        raise InvalidRequest(
            f"{name} is an alias: DELETE /v1/aliases/{name} deletes it, and its targets are downloaded by their names.",
            param="model",
        )
    deployment = context.store.deployments.get(name)
    if deployment is not None:
        raise InvalidRequest(
            f"{name} was not made here: it is deployed as {deployment[0].id}, and DELETE /v1/deployments/{name} takes "
            "it down.",
            param="model",
        )
    if context.store.engines.get(name) is not None:
        raise InvalidRequest(
            f"{name} is a base: it can be neither deleted nor downloaded here.", param="model"
        )
    raise _not_found(name)


def _not_found(name: str) -> NotFound:
    return NotFound(f"No such model: {quoted(name)}.", param="model", code="model_not_found")
