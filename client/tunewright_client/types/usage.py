"""What was used, and what it costs."""

from __future__ import annotations

from typing import Generic, TypeVar

from .base import Wire


class UsageResult(Wire):
    """What a combination of `group_by` has used in a bucket; what is not grouped by is None.

    - num_model_requests: requests that were answered
    - gpu_seconds: of `usage.gpu_seconds` alone
    - api_key_id: for requests of jobs the key that has created the job; none without a key, and for shadows
    """

    object: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    num_model_requests: int = 0
    gpu_seconds: float | None = None
    project_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None
    batch: bool | None = None


class UsageBucket(Wire):
    """A day or an hour (UTC); times are Unix seconds."""

    object: str = "bucket"
    start_time: int
    end_time: int
    results: tuple[UsageResult, ...] = ()


class CostAmount(Wire):
    value: float = 0.0
    currency: str = ""


class CostResult(Wire):
    """What something costs by the operator's prices; `amount` is None where nothing of it has a price.

    - line_item: such as `my-base, input_tokens`
    - quantity, quantity_unit: where it is grouped by line_item
    """

    object: str = "organization.costs.result"
    amount: CostAmount | None = None
    line_item: str | None = None
    project_id: str | None = None
    api_key_id: str | None = None
    quantity: float | None = None
    quantity_unit: str | None = None


class CostBucket(Wire):
    """A day (UTC); times are Unix seconds."""

    object: str = "bucket"
    start_time: int
    end_time: int
    results: tuple[CostResult, ...] = ()


B = TypeVar("B", bound=Wire)


class BucketPage(Wire, Generic[B]):
    data: tuple[B, ...] = ()
    has_more: bool = False
    next_page: str | None = None
