"""Syntheses: `client.syntheses`, and the record with the methods of one synthesis."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._core import endpoints
from ..types import SynthesisRecord
from .job_resource import AsyncBoundJob, AsyncJobResource


class AsyncSynthesis(AsyncBoundJob, SynthesisRecord):
    """A synthesis as it was when it was read, with methods that ask its client. The record does not change: `refresh`
    returns a new one."""


class AsyncSyntheses(AsyncJobResource[AsyncSynthesis]):
    """`client.syntheses`: training rows that a served model, the teacher, makes of the rows of a file. A synthesis is a
    job, so `job_id` arguments take the id of a synthesis."""

    _path = endpoints.SYNTHESES
    _record = AsyncSynthesis

    async def create(
        self,
        model: str,
        file: str | Path,
        task: str | Mapping[str, Any],
        *,
        rows: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        deduplicate: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncSynthesis:
        """Have a teacher make a new file of training rows.

        - model: the teacher: a base, an adapter, a deployed model, or an alias, of which the present target is asked
        - file: the id of a file, or a pathlib.Path of a local file, which is uploaded first
        - task: "answers" (the teacher answers what the rows ask), "paraphrases" (it rewrites what the user says) or
          "rows" (it writes new ones), or a mapping with that as its type and with options: n, instructions, grader,
          min_score, keep and keep_refusals of answers, per_row and instructions of paraphrases, count, examples,
          topics and instructions of rows. rows needs a count
        - rows: how many rows of the file are drawn
        - temperature (0.7), top_p (1), max_tokens, seed: of each answer
        - deduplicate: similarity and source, as of docs/how-to/make-training-rows.md
        - data: how the file is read: columns, tags, alpaca, as of jobs
        - idempotency_key: all calls with the same key give the same synthesis

        `made_file` is the id of the new file when it has succeeded. Raises BadRequestError for a request that cannot
        succeed, NotFoundError for an unknown model, FileNotFoundError for a missing local file.
        """
        fields = {
            "model": model,
            "task": {"type": task} if isinstance(task, str) else task,
            "rows": rows,
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_tokens,
            "seed": seed,
            "deduplicate": deduplicate,
            "data": data,
            "metadata": metadata,
        }
        return await self._create({"file": file}, idempotency_key or str(uuid.uuid4()), fields)
