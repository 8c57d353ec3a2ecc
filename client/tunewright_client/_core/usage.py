"""The routes of usage and costs."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel

from ..types.usage import BucketPage, CostBucket, UsageBucket
from .call import Call, Params

P = TypeVar("P", bound=BaseModel)
_USAGE = "/organization/usage/"


def completions(params: Params) -> Call[BucketPage[UsageBucket]]:
    return _call(f"{_USAGE}completions", BucketPage[UsageBucket], params)


def embeddings(params: Params) -> Call[BucketPage[UsageBucket]]:
    return _call(f"{_USAGE}embeddings", BucketPage[UsageBucket], params)


def gpu_seconds(params: Params) -> Call[BucketPage[UsageBucket]]:
    return _call(f"{_USAGE}gpu_seconds", BucketPage[UsageBucket], params)


def costs(params: Params) -> Call[BucketPage[CostBucket]]:
    return _call("/organization/costs", BucketPage[CostBucket], params)


def _call(path: str, page: type[P], params: Params) -> Call[P]:
    return Call("GET", path, lambda response: page.model_validate_json(response.content), params=params)
