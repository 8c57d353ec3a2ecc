"""Finds the named bases, for requests that only read their files."""

from __future__ import annotations

from tunewright.api.http.context import ServiceContext
from tunewright.errors import InvalidRequest, NotFound, quoted
from tunewright.registry.bases import BaseInfo, BaseUnavailable, inspect_base


def named_base(context: ServiceContext, name: str) -> BaseInfo:
    """The base of this name. Raises NotFound, and InvalidRequest where its files cannot be used."""
    bases = {base.name: base for base in context.bases()}
    if name not in bases:
        raise NotFound(
            f"No such base: {quoted(name)}. Bases here: {', '.join(bases)}.",
            param="model",
            code="model_not_found",
        )
    try:
        return inspect_base(bases[name])
    except BaseUnavailable as error:
        raise InvalidRequest(f"{name} cannot be used: {error}.", param="model") from error
