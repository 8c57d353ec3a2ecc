"""Answers of `/v1/organization/usage` and `/v1/organization/costs`, shaped like those of OpenAI's admin API."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from pydantic import Field

from tunewright.wire import Wire

Result = TypeVar("Result")


class Bucket(Wire, Generic[Result]):
    """A day or an hour (UTC)."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[Result] = Field(
        description="One for each combination of `group_by`, and none where nothing was used."
    )


class Buckets(Wire, Generic[Result]):
    """Buckets, the oldest first; ask for the next ones with `page` = `next_page` while `has_more`."""

    object: Literal["page"] = "page"
    data: list[Bucket[Result]]
    has_more: bool
    next_page: str | None


class CompletionsUsage(Wire):
    """Chats, completions and responses. What is not grouped by is null."""

    object: Literal["organization.usage.completions.result"] = "organization.usage.completions.result"
    input_tokens: int
    output_tokens: int
    num_model_requests: int = Field(description="Requests that a model has answered, or some of them.")
    project_id: str | None = None
    user_id: None = None
    api_key_id: str | None = Field(
        None,
        description="For requests of jobs the key that has created the job; `none` without a key, and for shadows.",
    )
    model: str | None = Field(None, description="The model that answered; never an alias.")
    batch: bool | None = None


class EmbeddingsUsage(Wire):
    object: Literal["organization.usage.embeddings.result"] = "organization.usage.embeddings.result"
    input_tokens: int
    num_model_requests: int
    project_id: str | None = None
    user_id: None = None
    api_key_id: str | None = None
    model: str | None = None


class GpuUsage(Wire):
    """The time for which jobs had GPUs; that of running jobs until now."""

    object: Literal["organization.usage.gpu_seconds.result"] = "organization.usage.gpu_seconds.result"
    gpu_seconds: float
    project_id: str | None = None
    api_key_id: str | None = Field(None, description="Of the key that has created the jobs.")
    model: str | None = Field(None, description="The base of the jobs.")


class Amount(Wire):
    value: float
    currency: str = Field(description="In lower case, as usd.")


class Costs(Wire):
    """By the prices that the service has now."""

    object: Literal["organization.costs.result"] = "organization.costs.result"
    amount: Amount | None = Field(description="Null where nothing of it has a price.")
    line_item: str | None = Field(None, description="As `my-base, input_tokens`.")
    project_id: str | None = None
    api_key_id: str | None = None
    quantity: float | None = Field(None, description="Where it is grouped by line_item.")
    quantity_unit: Literal["tokens", "duration_hours"] | None = None
