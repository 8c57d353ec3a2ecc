"""Fine-tuning jobs: `client.jobs`, and the Job that knows its client."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._core import endpoints
from ..types import Checkpoint, JobRecord, Tuning
from .pages import AsyncPager
from .work import AsyncBoundRecord, AsyncWork


class AsyncJob(AsyncBoundRecord, JobRecord):
    """A fine-tuning job as it was when it was read; its methods ask its client. A record does not change:
    `job = job.refresh()` reads a new one."""

    def checkpoints(self, after: str | None = None, limit: int | None = None) -> AsyncPager[Checkpoint]:
        """See `client.jobs.checkpoints`."""
        return self._api._client.jobs.checkpoints(self.id, after, limit)


class AsyncJobs(AsyncWork[AsyncJob]):
    """`client.jobs`."""

    _path = endpoints.JOBS
    _record = AsyncJob

    async def create(
        self,
        model: str,
        training_file: str | Path,
        validation_file: str | Path | None = None,
        tuning: Mapping[str, Any] | Tuning | None = None,
        method: Mapping[str, Any] | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        suffix: str | None = None,
        seed: int | None = None,
        metadata: Mapping[str, str] | None = None,
        chat_template: str | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncJob:
        """Start a fine-tuning job.

        - model: the base, or a fine-tuned model to go on from
        - training_file, validation_file: a file's id, or a pathlib.Path to a file, which is uploaded first
        - tuning: settings such as {"type": "lora", "rank": 16}; what is left out is chosen for you
        - method, hyperparameters: OpenAI's way to say it
        - suffix: part of the new model's name
        - idempotency_key: the same key gives the same job, however often this is called

        Raises BadRequestError for settings or files that cannot work, FileNotFoundError for a missing file.
        """
        return await self._create(
            {"training_file": training_file, "validation_file": validation_file},
            idempotency_key,
            model=model,
            tuning=tuning,
            method=method,
            hyperparameters=hyperparameters,
            suffix=suffix,
            seed=seed,
            metadata=metadata,
            chat_template=chat_template,
        )

    def checkpoints(
        self, job_id: str, after: str | None = None, limit: int | None = None
    ) -> AsyncPager[Checkpoint]:
        """A job's checkpoints, newest first."""
        return self._client._page(endpoints.list_checkpoints(job_id, after, limit))
