"""`/v1/aliases`: stable names for models that are switched atomically, split traffic, and can be rolled back."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query

from tunewright.api.aliases.gate import guard_of, judge_targets, judged_so_far, requirement_of
from tunewright.api.aliases.schemas import (
    AliasObject,
    AliasVersionObject,
    PutAlias,
    RollbackAlias,
    ShadowAnswerObject,
)
from tunewright.api.gateway.warming import warm
from tunewright.api.http.context import Context, ServiceContext
from tunewright.api.http.errors import responses
from tunewright.api.http.names import register_names
from tunewright.api.http.wire import After, Deleted, Page, User, page_of
from tunewright.errors import NotFound, quoted
from tunewright.registry.aliases import Alias, AliasRequirement
from tunewright.store.alias_gates import KEEP, Kept

router = APIRouter(prefix="/v1/aliases", tags=["Aliases"])

register_names("alias", "history", "rollback", "shadow")


@router.get("", summary="List aliases", responses=responses(400))
def list_aliases(
    context: Context, after: After = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> Page[AliasObject]:
    """In the order of their names."""
    found, more = context.store.aliases.list(after=after, limit=limit)
    return Page(**page_of([AliasObject.of(alias) for alias in found], more))


@router.get("/{name:path}/history", summary="List an alias's versions", responses=responses(400, 404))
def history(
    context: Context,
    name: str,
    after: Annotated[
        int | None, Query(ge=1, le=2**31 - 1, description="The last version of the page before.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> Page[AliasVersionObject]:
    """Newest first. The versions are kept after the alias is deleted."""
    found, more = context.store.aliases.history(name, after=after, limit=limit)
    if not found and after is None:
        raise _not_found(name)
    return Page(**page_of([AliasVersionObject.of(version) for version in found], more))


@router.get(
    "/{name:path}/shadow", summary="List what an alias's shadow answered", responses=responses(400, 404)
)
def shadow_answers(
    context: Context, name: str, after: After = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> Page[ShadowAnswerObject]:
    """Newest first; the last 1,000 are kept, until the alias is deleted."""
    _get(context, name)
    found, more = context.store.shadow_answers.list(name, after=after, limit=limit)
    return Page(**page_of([ShadowAnswerObject.of(answer) for answer in found], more))


@router.get("/{name:alias}", summary="Retrieve an alias", responses=responses(404))
def retrieve(context: Context, name: str) -> AliasObject:
    alias = _get(context, name)
    return AliasObject.of(alias, judged_so_far(context, alias))


@router.put("/{name:alias}", summary="Set an alias", responses=responses(400, 404, 409, 503, 507))
async def put(context: Context, name: str, body: PutAlias, user: User = None) -> AliasObject:
    """Requests that come after the answer go to the new targets; running requests end on the old ones. New targets that
    have not passed what the alias requires are refused with 409 `gate_not_passed` and the numbers."""
    (targets, shadow, guard), aliases = body.parts(), context.store.aliases
    parts = (targets, shadow, await asyncio.to_thread(guard_of, context, guard))
    require: AliasRequirement | Kept | None = KEEP
    if "require" in body.model_fields_set:
        asked = body.require
        require = await asyncio.to_thread(requirement_of, context, asked) if asked else None
    how: dict[str, Any] = {
        "judge": judge_targets,
        "force": body.force,
        "expected_version": body.expected_version,
    }
    await asyncio.to_thread(partial(aliases.check, name, *parts, require, **how))
    if body.wait:
        await warm(context, name, [target.model for target in parts[0]])
    return AliasObject.of(
        await asyncio.to_thread(partial(aliases.put, name, *parts, require, who=user, **how))
    )


@router.post("/{name:path}/rollback", summary="Roll an alias back", responses=responses(400, 404, 503, 507))
async def rollback(
    context: Context, name: str, body: RollbackAlias | None = None, user: User = None
) -> AliasObject:
    """Restore the version before, or the one that is named; a rollback is a new version itself."""
    asked = body or RollbackAlias()
    aliases = context.store.aliases
    current, earlier = await asyncio.to_thread(
        aliases.plan_rollback, name, asked.version, expected_version=asked.expected_version
    )
    if asked.wait:
        await warm(context, name, [target.model for target in earlier.targets])
    return AliasObject.of(
        await asyncio.to_thread(
            aliases.rollback, name, earlier.version, who=user, expected_version=current.version
        )
    )


@router.delete("/{name:alias}", summary="Delete an alias", responses=responses(400, 404, 507))
def delete(context: Context, name: str, user: User = None) -> Deleted:
    """Its history is kept; the answers of its shadow are deleted."""
    if not context.store.aliases.delete(name, who=user):
        raise _not_found(name)
    return Deleted(id=name, object="alias")


def _get(context: ServiceContext, name: str) -> Alias:
    alias = context.store.aliases.get(name)
    if alias is None:
        raise _not_found(name)
    return alias


def _not_found(name: str) -> NotFound:
    return NotFound(f"No such alias: {quoted(name)}.", param="name", code="alias_not_found")
