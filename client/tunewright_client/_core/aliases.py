"""Aliases: what targets, shadows and guards may be given as, and the flow of a rollback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..types import Alias, AliasGuard, AliasShadow, AliasTarget
from . import endpoints
from .call import Context
from .flow import Flow, fetch
from .weighted import as_object, weighted

Targets = str | Mapping[str, float] | Sequence[str | AliasTarget | Mapping[str, Any]]
ShadowInput = str | AliasShadow | Mapping[str, Any]
GuardInput = AliasGuard | Mapping[str, Any]


def alias_body(
    targets: Targets,
    shadow: ShadowInput | None,
    guard: GuardInput | None,
    expected_version: int | None,
    wait: bool,
) -> dict[str, Any]:
    """The body that sets an alias."""
    body = {
        "targets": weighted(targets),
        "shadow": None if shadow is None else as_object(shadow),
        "guard": None if guard is None else as_object(guard),
        "expected_version": expected_version,
        "wait": wait,
    }
    return {name: value for name, value in body.items() if value is not None}


def roll_back(
    context: Context,
    name: str,
    version: int | None,
    expected_version: int | None,
    wait: bool,
    user: str | None,
) -> Flow[Alias]:
    """Roll back from the version that the alias has now: asked again, after an answer that was lost, the
    server does not go back by one more."""
    if expected_version is None:
        expected_version = (yield from fetch(context, endpoints.retrieve_alias(name))).version
    body = {"expected_version": expected_version, "wait": wait}
    if version is not None:
        body["version"] = version
    return (yield from fetch(context, endpoints.roll_back_alias(name, body, user)))
