"""The routes of usage and costs."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel

from ..types.usage import CostPage, UsagePage
from .call import Call, Params

P = TypeVar("P", bound=BaseModel)
_USAGE = "/organization/usage/"


def completions(params: Params) -> Call[UsagePage]:
    return _call(f"{_USAGE}completions", UsagePage, params)


def embeddings(params: Params) -> Call[UsagePage]:
    return _call(f"{_USAGE}embeddings", UsagePage, params)


def gpu_seconds(params: Params) -> Call[UsagePage]:
    return _call(f"{_USAGE}gpu_seconds", UsagePage, params)


def costs(params: Params) -> Call[CostPage]:
    return _call("/organization/costs", CostPage, params)


def _call(path: str, page: type[P], params: Params) -> Call[P]:
    return Call("GET", path, lambda response: page.model_validate_json(response.content), params=params)
