"""Models with weights, as they may be given: an alias's targets, the adapters of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

Weighted = Mapping[str, float] | Sequence[str | BaseModel | Mapping[str, Any]]
"""Weights by names, or a list of names and of objects with `model` and `weight`."""


def weighted(models: str | Weighted) -> list[dict[str, Any]]:
    """As the API takes them. A name without a weight has none here: the server knows what that means."""
    if isinstance(models, str):
        models = [models]
    elif isinstance(models, Mapping):
        models = [{"model": model, "weight": weight} for model, weight in models.items()]
    return [as_object(model) for model in models]


def as_object(value: str | BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """A model's name, a typed object or a mapping, as the API takes it."""
    if isinstance(value, str):
        return {"model": value}
    if isinstance(value, Mapping):
        return dict(value)
    return value.model_dump(exclude_unset=True)
