"""Usage: `client.usage`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._core import usage
from .._core.call import Call
from ..types import CostBucket, UsageBucket
from ..types.usage import B, BucketPage
from .http import AsyncResource


class AsyncUsage(AsyncResource):
    """`client.usage`: what was used, in buckets of a day or an hour (UTC), also empty ones. For admins of all projects,
    and for a project's keys with the scope admin of that project.

    - start, end: Unix seconds; by default the last 7 days, or 24 hours
    - bucket_width: 1d or 1h
    - group_by: of project_id, api_key_id, model, batch; of costs project_id, api_key_id, line_item
    - project_ids, api_key_ids, models: only these

    Raises BadRequestError.
    """

    async def completions(
        self,
        *,
        start: int | None = None,
        end: int | None = None,
        bucket_width: str = "1d",
        group_by: Sequence[str] = (),
        project_ids: Sequence[str] = (),
        api_key_ids: Sequence[str] = (),
        models: Sequence[str] = (),
        batch: bool | None = None,
    ) -> list[UsageBucket]:
        """Requests and tokens of chats, completions and responses."""
        params = {
            "start_time": start,
            "end_time": end,
            "bucket_width": bucket_width,
            "group_by": group_by,
            "project_ids": project_ids,
            "api_key_ids": api_key_ids,
            "models": models,
            "batch": _flag(batch),
        }
        return await self._all(usage.completions, params)

    async def embeddings(
        self,
        *,
        start: int | None = None,
        end: int | None = None,
        bucket_width: str = "1d",
        group_by: Sequence[str] = (),
        project_ids: Sequence[str] = (),
        api_key_ids: Sequence[str] = (),
        models: Sequence[str] = (),
    ) -> list[UsageBucket]:
        """Requests and tokens of embeddings."""
        params = {
            "start_time": start,
            "end_time": end,
            "bucket_width": bucket_width,
            "group_by": group_by,
            "project_ids": project_ids,
            "api_key_ids": api_key_ids,
            "models": models,
        }
        return await self._all(usage.embeddings, params)

    async def gpu_seconds(
        self,
        *,
        start: int | None = None,
        end: int | None = None,
        bucket_width: str = "1d",
        group_by: Sequence[str] = (),
        project_ids: Sequence[str] = (),
        api_key_ids: Sequence[str] = (),
        models: Sequence[str] = (),
    ) -> list[UsageBucket]:
        """The time for which jobs had GPUs, by project, the key that created the job, and base."""
        params = {
            "start_time": start,
            "end_time": end,
            "bucket_width": bucket_width,
            "group_by": group_by,
            "project_ids": project_ids,
            "api_key_ids": api_key_ids,
            "models": models,
        }
        return await self._all(usage.gpu_seconds, params)

    async def costs(
        self,
        *,
        start: int | None = None,
        end: int | None = None,
        group_by: Sequence[str] = (),
        project_ids: Sequence[str] = (),
        api_key_ids: Sequence[str] = (),
        line_items: Sequence[str] = (),
    ) -> list[CostBucket]:
        """By the operator's prices, in buckets of a day."""
        params = {
            "start_time": start,
            "end_time": end,
            "group_by": group_by,
            "project_ids": project_ids,
            "api_key_ids": api_key_ids,
            "line_items": line_items,
        }
        return await self._all(usage.costs, params)

    async def _all(
        self, call: Callable[[Mapping[str, Any]], Call[BucketPage[B]]], params: dict[str, Any]
    ) -> list[B]:
        found: list[B] = []
        while True:
            page = await self._http.fetch(call(_given(params)))
            found += page.data
            if page.next_page is None:
                return found
            params["page"] = page.next_page


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    """Without lists that are empty."""
    return {name: value for name, value in params.items() if value != () and value != []}


def _flag(value: bool | None) -> str | None:
    return None if value is None else str(value).lower()
