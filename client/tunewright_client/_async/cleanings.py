"""Cleanings: `client.cleanings`, and the record with the methods of one cleaning."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._core import endpoints
from .._core.inputs import CleaningStep, cleaning_step
from ..types import CleaningRecord
from .job_resource import AsyncBoundJob, AsyncJobResource


class AsyncCleaning(AsyncBoundJob, CleaningRecord):
    """A cleaning as it was when it was read, with methods that ask its client. The record does not change: `refresh`
    returns a new one."""


class AsyncCleanings(AsyncJobResource[AsyncCleaning]):
    """`client.cleanings`: files made of other files. A cleaning is a job, so `job_id` arguments take the id of a
    cleaning."""

    _path = endpoints.CLEANINGS
    _record = AsyncCleaning

    async def create(
        self,
        file: str | Path,
        steps: Sequence[CleaningStep],
        *,
        data: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncCleaning:
        """Make a new file of the rows of `file` that are left after some steps.

        - file: the id of a file, or a pathlib.Path of a local file, which is uploaded first
        - steps: names, or objects with a type and its options, such as "html" or {"type": "length", "min_answer": 5}.
          Those of docs/how-to/clean-data.md; they run in its order. The step leaks has the other file as `against`: an
          id, or a pathlib.Path
        - data: how the files are read: columns, tags, alpaca, as of jobs
        - idempotency_key: all calls with the same key give the same cleaning

        `cleaned_file` is the id of the new file when it has succeeded. Raises BadRequestError for steps that do not
        fit, or a file that cannot be read, FileNotFoundError for a missing local file.
        """
        key = idempotency_key or str(uuid.uuid4())
        sent = [cleaning_step(step) for step in steps]
        for step in sent:
            if isinstance(step.get("against"), Path):
                step["against"] = await self._uploaded("against", step["against"], key)
        return await self._create({"file": file}, key, {"steps": sent, "data": data, "metadata": metadata})
