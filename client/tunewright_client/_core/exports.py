"""What an export may be given as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..types import CombineOptions
from .weighted import Weighted, weighted

CombineInput = str | CombineOptions | Mapping[str, Any]


def source_fields(model: str | None, models: Weighted | None, combine: CombineInput | None) -> dict[str, Any]:
    """The fields that say what is exported. Raises ValueError unless one of `model` and `models` is given."""
    if (model is None) == (models is None):
        raise ValueError("give one of model and models")
    return {
        "model": model,
        "models": None if models is None else weighted(models),
        "combine": {"method": combine} if isinstance(combine, str) else combine,
    }
