"""Fine-tuning jobs: `client.jobs`, and the record with the methods of one job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from .._core import endpoints
from .._core.inputs import job_body
from ..types import Checkpoint, JobRecord, Plan, Tuning
from .job_resource import AsyncBoundJob, AsyncJobResource
from .pager import AsyncPager


class AsyncJob(AsyncBoundJob, JobRecord):
    """A fine-tuning job as it was when it was read, with methods that ask its client. The record does not change:
    `refresh` returns a new one."""

    def checkpoints(self, after: str | None = None, limit: int | None = None) -> AsyncPager[Checkpoint]:
        """See `client.jobs.checkpoints`."""
        return cast("AsyncJobs", self._resource).checkpoints(self.id, after, limit)


class AsyncJobs(AsyncJobResource[AsyncJob]):
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
        data: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncJob:
        """Create a fine-tuning job.

        - model: a base, or a fine-tuned model to continue from
        - training_file, validation_file: the id of a file, or a pathlib.Path of a local file, which is uploaded first;
          "auto" as the validation file holds out a share of the training file
        - data: how the files are read, such as {"columns": {"prompt": "question", "completion": "answer"}}
        - tuning: settings such as {"type": "lora", "rank": 16}; the service chooses the others
        - method, hyperparameters: the settings in OpenAI's form
        - suffix: a part of the new model's name
        - idempotency_key: all calls with the same key give the same job

        Raises BadRequestError for settings or files that cannot work, FileNotFoundError for a missing local file.
        """
        return await self._create(
            {"training_file": training_file, "validation_file": validation_file},
            idempotency_key,
            {
                "model": model,
                "tuning": tuning,
                "method": method,
                "hyperparameters": hyperparameters,
                "suffix": suffix,
                "seed": seed,
                "metadata": metadata,
                "chat_template": chat_template,
                "data": data,
            },
        )

    async def plan(
        self,
        model: str,
        training_file: str | Path,
        tuning: Mapping[str, Any] | Tuning | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
        data: Mapping[str, Any] | None = None,
        machine: str | None = None,
    ) -> Plan:
        """What a job with these settings would need, and what is advised; no job is created. `print` shows tables.

        - training_file: the id of a file, or a pathlib.Path of a local file, which is uploaded first
        - data: how the file is read, as for `create`
        - machine: such as "8xA100-80GB" or "H100"; the server's own, beside its engines, when None

        Raises BadRequestError, NotFoundError, FileNotFoundError for a missing local file.
        """
        if isinstance(training_file, Path):
            upload = endpoints.upload_file(training_file, "fine-tune", None)
            training_file = (await self._http.fetch(upload)).id
        fields = {
            "model": model,
            "training_file": training_file,
            "tuning": tuning,
            "hyperparameters": hyperparameters,
            "chat_template": chat_template,
            "data": data,
            "machine": machine,
        }
        return await self._http.fetch(endpoints.create_plan(job_body(fields)))

    def checkpoints(
        self, job_id: str, after: str | None = None, limit: int | None = None
    ) -> AsyncPager[Checkpoint]:
        """The checkpoints of a job, newest first."""
        return self._http.page(endpoints.list_checkpoints(job_id, after, limit))
