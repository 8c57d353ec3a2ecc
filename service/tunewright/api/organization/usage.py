"""`/v1/organization/usage` and `/v1/organization/costs`: what was used, by day or hour. The operator is told of all
projects, and an admin of a project of that one alone."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Query, Request

from tunewright.api.http.access import Principal
from tunewright.api.http.context import OrganizationContext, SentBy, ServiceContext
from tunewright.api.http.errors import responses
from tunewright.api.organization.pricing import NO_KEY, LineItem, line_items
from tunewright.api.organization.usage_schemas import (
    Amount,
    Bucket,
    Buckets,
    CompletionsUsage,
    Costs,
    EmbeddingsUsage,
    GpuUsage,
)
from tunewright.errors import InvalidRequest, quoted
from tunewright.store.usage import DAY, HOUR, Asked, UsageStore
from tunewright.wire import Text

router = APIRouter(prefix="/v1/organization", tags=["Organization"])

LATEST = 32_503_680_000
"""Unix seconds: the year 3000."""
_MOST_VALUES, _LONGEST_VALUE = 100, 500
_WIDTHS = {"1d": DAY, "1h": HOUR}
_BUCKETS = {"1d": (7, 31), "1h": (24, 168)}
"""How many buckets an answer has where `limit` is not given, and at most."""
_COST_DAYS = (7, 180)
_COLUMNS = {"project_id": "project", "api_key_id": "api_key_id", "model": "model", "batch": "batch"}
"""The columns of what can be grouped by."""

R = TypeVar("R")
Time = Annotated[int | None, Query(ge=0, le=LATEST)]
StartTime = Annotated[
    int | None,
    Query(
        ge=0, le=LATEST, description="Unix seconds; by default so that the last bucket is the present one."
    ),
]
EndTime = Annotated[int | None, Query(ge=0, le=LATEST, description="Until before then; by default now.")]
Width = Annotated[Literal["1d", "1h"], Query(description="Of a bucket: a day or an hour, UTC.")]
Cursor = Annotated[Text | None, Query(alias="page", description="`next_page` of the answer before.")]
Names = Annotated[
    list[Text] | None,
    Query(max_length=_MOST_VALUES, description="Only these; also as `name[]`, as openai sends it."),
]


@dataclass(frozen=True)
class Span:
    """The buckets that an answer has."""

    starts: range
    next_page: str | None

    @property
    def width(self) -> int:
        return self.starts.step

    @property
    def end(self) -> int:
        return self.starts.stop

    def page(self, results: dict[int, list[R]]) -> dict[str, Any]:
        """The fields of `Buckets`; `results` by the beginning of their bucket."""
        data: list[Bucket[Any]] = [
            Bucket(start_time=start, end_time=start + self.width, results=results.get(start, []))
            for start in self.starts
        ]
        return {"data": data, "has_more": self.next_page is not None, "next_page": self.next_page}


def _span(
    start: int | None,
    end: int | None,
    width: int,
    limit: int | None,
    cursor: str | None,
    most: tuple[int, int],
) -> Span:
    """Raises InvalidRequest."""
    number = most[0] if limit is None else limit
    if number > most[1]:
        raise InvalidRequest(f"`limit` is at most {most[1]} here.", param="limit")
    until = int(time.time()) + 1 if end is None else end
    until = -(-until // width) * width
    first = max(0, until - number * width) if start is None else start // width * width
    if cursor is not None:
        if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 12 and int(cursor) % width == 0):
            raise InvalidRequest(f"No such page: {quoted(cursor)}.", param="page")
        first = max(first, int(cursor))
    if until < first or (end is not None and start is not None and end <= start):
        raise InvalidRequest("`end_time` has to be after `start_time`.", param="end_time")
    stop = min(until, first + number * width)
    return Span(range(first, stop, width), str(stop) if stop < until else None)


class Given:
    """The lists of a query, as `name` and as `name[]`, in which form OpenAI's package sends them."""

    def __init__(self, request: Request) -> None:
        self._query = request.query_params

    def names(self, name: str) -> list[str] | None:
        """None where none is given. Raises InvalidRequest."""
        found = [*self._query.getlist(name), *self._query.getlist(f"{name}[]")]
        if len(found) > _MOST_VALUES or any("\0" in one or len(one) > _LONGEST_VALUE for one in found):
            raise InvalidRequest(f"`{name}` has too many values, or one that is no name.", param=name)
        return found or None

    def group_by(self, *allowed: str) -> list[str]:
        """Raises InvalidRequest."""
        found = list(dict.fromkeys(self.names("group_by") or ()))
        for name in found:
            if name not in allowed:
                raise InvalidRequest(
                    f"{quoted(name)} cannot be grouped by: it is one of {', '.join(allowed)}.",
                    param="group_by",
                )
        return found


Lists = Annotated[Given, Depends(Given)]


def _usage(context: ServiceContext, sender: Principal) -> UsageStore:
    return context.store.usage if sender.is_operator else context.store.of(sender.project).usage


@router.get("/usage/completions", summary="Usage of completions", responses=responses(400))
def completions(
    context: OrganizationContext,
    sender: SentBy,
    given: Lists,
    start_time: StartTime = None,
    end_time: EndTime = None,
    bucket_width: Width = "1d",
    group_by: Annotated[
        list[Literal["project_id", "api_key_id", "model", "batch"]] | None, Query(max_length=4)
    ] = None,
    project_ids: Names = None,
    api_key_ids: Names = None,
    models: Names = None,
    batch: Annotated[bool | None, Query(description="Only those of batches, or only the others.")] = None,
    limit: Annotated[
        int | None, Query(ge=1, le=168, description="Buckets: 7 days (at most 31), 24 hours.")
    ] = None,
    page: Cursor = None,
) -> Buckets[CompletionsUsage]:
    """Requests and tokens of chats, completions and responses, also of batches, evaluations, syntheses, graders and
    shadows. What was used a few seconds ago may be missing."""
    by = given.group_by("project_id", "api_key_id", "model", "batch")
    span = _span(start_time, end_time, _WIDTHS[bucket_width], limit, page, _BUCKETS[bucket_width])
    found: dict[int, list[CompletionsUsage]] = defaultdict(list)
    for sums in _usage(context, sender).tokens(_asked(span, given, by, batch), "completions"):
        used = sums.used
        result = CompletionsUsage(
            input_tokens=used.input_tokens,
            output_tokens=used.output_tokens,
            num_model_requests=used.requests,
            **_group(by, sums.group),
        )
        found[sums.bucket].append(result)
    return Buckets[CompletionsUsage](**span.page(found))


@router.get("/usage/embeddings", summary="Usage of embeddings", responses=responses(400))
def embeddings(
    context: OrganizationContext,
    sender: SentBy,
    given: Lists,
    start_time: StartTime = None,
    end_time: EndTime = None,
    bucket_width: Width = "1d",
    group_by: Annotated[
        list[Literal["project_id", "api_key_id", "model"]] | None, Query(max_length=3)
    ] = None,
    project_ids: Names = None,
    api_key_ids: Names = None,
    models: Names = None,
    limit: Annotated[int | None, Query(ge=1, le=168)] = None,
    page: Cursor = None,
) -> Buckets[EmbeddingsUsage]:
    """As that of completions."""
    by = given.group_by("project_id", "api_key_id", "model")
    span = _span(start_time, end_time, _WIDTHS[bucket_width], limit, page, _BUCKETS[bucket_width])
    found: dict[int, list[EmbeddingsUsage]] = defaultdict(list)
    for sums in _usage(context, sender).tokens(_asked(span, given, by), "embeddings"):
        result = EmbeddingsUsage(
            input_tokens=sums.used.input_tokens,
            num_model_requests=sums.used.requests,
            **_group(by, sums.group),
        )
        found[sums.bucket].append(result)
    return Buckets[EmbeddingsUsage](**span.page(found))


@router.get("/usage/gpu_seconds", summary="Usage of GPUs", responses=responses(400))
def gpu_seconds(
    context: OrganizationContext,
    sender: SentBy,
    given: Lists,
    start_time: StartTime = None,
    end_time: EndTime = None,
    bucket_width: Width = "1d",
    group_by: Annotated[
        list[Literal["project_id", "api_key_id", "model"]] | None, Query(max_length=3)
    ] = None,
    project_ids: Names = None,
    api_key_ids: Names = None,
    models: Names = None,
    limit: Annotated[int | None, Query(ge=1, le=168)] = None,
    page: Cursor = None,
) -> Buckets[GpuUsage]:
    """The time for which jobs had GPUs, times their number, by the base of the jobs. OpenAI's API has no such route."""
    by = given.group_by("project_id", "api_key_id", "model")
    span = _span(start_time, end_time, _WIDTHS[bucket_width], limit, page, _BUCKETS[bucket_width])
    found: dict[int, list[GpuUsage]] = defaultdict(list)
    for sums in _usage(context, sender).gpu_seconds(_asked(span, given, by)):
        found[sums.bucket].append(GpuUsage(gpu_seconds=sums.seconds, **_group(by, sums.group)))
    return Buckets[GpuUsage](**span.page(found))


@router.get("/costs", summary="Costs", responses=responses(400))
def costs(
    context: OrganizationContext,
    sender: SentBy,
    given: Lists,
    start_time: StartTime = None,
    end_time: EndTime = None,
    bucket_width: Annotated[Literal["1d"], Query(description="A day, UTC.")] = "1d",
    group_by: Annotated[
        list[Literal["project_id", "line_item", "api_key_id"]] | None, Query(max_length=3)
    ] = None,
    project_ids: Names = None,
    api_key_ids: Names = None,
    line_items: Names = None,
    limit: Annotated[int | None, Query(ge=1, le=180, description="Days: 7, at most 180.")] = None,
    page: Cursor = None,
) -> Buckets[Costs]:
    """Tokens times `--price`, and hours of GPUs of jobs times `--price-per-hour`, as these are now."""
    by = given.group_by("project_id", "line_item", "api_key_id")
    span = _span(start_time, end_time, DAY, limit, page, _COST_DAYS)
    wanted = given.names("line_items")
    sums: dict[tuple[Any, ...], list[LineItem]] = defaultdict(list)
    for bucket, item in _items(context, sender, span, given):
        if wanted is None or item.name in wanted:
            group = {"project_id": item.project, "line_item": item.name, "api_key_id": item.key}
            sums[(bucket, *(group[name] for name in by))].append(item)
    found: dict[int, list[Costs]] = defaultdict(list)
    for key, items in sorted(sums.items()):
        found[key[0]].append(
            _cost(dict(zip(by, key[1:], strict=True)), items, context.settings.jobs.currency)
        )
    return Buckets[Costs](**span.page(found))


def _asked(span: Span, given: Given, by: Sequence[str], batch: bool | None = None) -> Asked:
    keys = given.names("api_key_ids")
    return Asked(
        span.starts.start,
        span.end,
        span.width,
        [_COLUMNS[name] for name in by],
        given.names("project_ids"),
        ["" if key == NO_KEY else key for key in keys] if keys is not None else None,
        given.names("models"),
        batch,
    )


def _group(by: Sequence[str], found: Any) -> dict[str, Any]:
    """The fields of a result that it is grouped by."""
    values = {name: found[_COLUMNS[name]] for name in by}
    if "batch" in values:
        values["batch"] = bool(values["batch"])
    if "api_key_id" in values:
        values["api_key_id"] = values["api_key_id"] or NO_KEY
    return values


def _items(
    context: ServiceContext, sender: Principal, span: Span, given: Given
) -> list[tuple[int, LineItem]]:
    """What the buckets have used, with prices, by the beginning of the bucket."""
    usage = _usage(context, sender)
    asked = _asked(span, given, ["project_id", "api_key_id", "model"])
    tokens = usage.tokens(asked)
    return line_items(
        tokens, usage.gpu_seconds(asked), context.settings.server.prices, context.settings.jobs.price_per_hour
    )


def _cost(group: dict[str, str | None], items: Sequence[LineItem], currency: str) -> Costs:
    amounts = [item.amount for item in items if item.amount is not None]
    amount = Amount(value=sum(amounts), currency=currency.lower()) if amounts else None
    if "line_item" not in group:
        return Costs(amount=amount, **group)
    return Costs(
        amount=amount, **group, quantity=sum(item.quantity for item in items), quantity_unit=items[0].unit
    )
