"""Fine-tuning jobs: `client.jobs`, and the record with the methods of one job."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from .._core import endpoints
from .._core.inputs import Mix, evaluate_object, graded_method, job_body, method_object, with_mix
from ..types import Checkpoint, JobRecord, Pipeline, Plan, Tuning
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
        method: str | Mapping[str, Any] | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        suffix: str | None = None,
        seed: int | None = None,
        metadata: Mapping[str, str] | None = None,
        chat_template: str | None = None,
        data: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        mix: Mix | None = None,
        beta: float | str | None = None,
        grader: Mapping[str, Any] | None = None,
        integrations: Sequence[Mapping[str, Any]] | None = None,
        steps: Sequence[Mapping[str, Any]] | None = None,
        evaluate: Mapping[str, Any] | None = None,
    ) -> AsyncJob:
        """Create a fine-tuning job.

        - model: a base, or a fine-tuned model to continue from
        - training_file, validation_file: the id of a file, or a pathlib.Path of a local file, which is uploaded first;
          "auto" as the validation file holds out a share of the training file
        - data: how the files are read, such as {"columns": {"prompt": "question", "completion": "answer"}}
        - mix: further training files with weights, such as {"file-...": 2.0, Path("rare.jsonl"): 0.5}, which say how
          often an epoch has the rows of each; the training file has the weight 1 unless it is among them
        - tuning: settings such as {"type": "lora", "rank": 16}; the service chooses the others
        - method: "supervised"; on a file of preferences "dpo", "reward" or, experimental, "orpo"; on one of
          answers that are good or bad "kto"; or OpenAI's form, such as
          {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}}
        - beta: of dpo and kto: how strongly the model is kept near what it was before; of orpo: the weight of the odds
        - grader: of the method "reinforcement", on a file of prompts: what scores the answers that the job makes, such
          as {"type": "string_check", "name": "exact", "operation": "eq", "input": "{{ sample.output_text }}",
          "reference": "{{ item.answer }}"}; `client.graders.run` tries it on an answer
        - hyperparameters: the settings in OpenAI's older form
        - integrations: where the job is reported: [{"type": "wandb", "wandb": {"project": "support"}}, {"type":
          "tensorboard"}, {"type": "mlflow"}], or some of them; its `unreported` says why it is not, where the server
          lacks what they need
        - steps: jobs that follow this one, each from the model of the one before, such as [{"training_file":
          Path("pairs.jsonl"), "method": "dpo"}]; `pipeline` shows them all
        - evaluate: what is measured of the job's adapters, each against the base, before it ends, such as {"data":
          Path("test.jsonl"), "metrics": "accuracy", "suites": "mmlu", "require": {"metric": "accuracy", "max_drop":
          0.02}, "select": "best"}: its `evaluation` has what was found
        - suffix: a part of the new model's name
        - idempotency_key: all calls with the same key give the same job

        Raises BadRequestError for settings or files that cannot work, FileNotFoundError for a missing local file,
        ValueError for a beta without a method that has one, or a grader beside another method than "reinforcement".
        """
        key = idempotency_key or str(uuid.uuid4())
        if mix is not None:
            ids = await self._uploaded_once([training_file, *mix], key)
            training_file = ids[training_file]
            data = with_mix(data, {ids[file]: weight for file, weight in mix.items()})
        return await self._create(
            {"training_file": training_file, "validation_file": validation_file},
            key,
            {
                "model": model,
                "tuning": tuning,
                "method": method_object(method, beta)
                if grader is None
                else graded_method(grader, method, beta),
                "hyperparameters": hyperparameters,
                "suffix": suffix,
                "seed": seed,
                "metadata": metadata,
                "chat_template": chat_template,
                "data": data,
                "integrations": None if integrations is None else [*integrations],
                "steps": None if steps is None else [await self._step(*one, key) for one in enumerate(steps)],
                "evaluate": None if evaluate is None else await self._evaluate("evaluate", evaluate, key),
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
        mix: Mix | None = None,
        method: str | Mapping[str, Any] | None = None,
        beta: float | str | None = None,
        grader: Mapping[str, Any] | None = None,
    ) -> Plan:
        """What a job with these settings would need, and what is advised; no job is created. `print` shows tables.

        - training_file: the id of a file, or a pathlib.Path of a local file, which is uploaded first
        - method, beta, data, mix, grader: as for `create`
        - machine: such as "8xA100-80GB" or "H100"; the server's own, beside its engines, when None

        Raises BadRequestError, NotFoundError, FileNotFoundError for a missing local file.
        """
        ids = await self._uploaded_once([training_file, *(mix or {})], str(uuid.uuid4()))
        training_file = ids[training_file]
        if mix is not None:
            data = with_mix(data, {ids[file]: weight for file, weight in mix.items()})
        fields = {
            "model": model,
            "training_file": training_file,
            "tuning": tuning,
            "method": method_object(method, beta) if grader is None else graded_method(grader, method, beta),
            "hyperparameters": hyperparameters,
            "chat_template": chat_template,
            "data": data,
            "machine": machine,
        }
        return await self._http.fetch(endpoints.create_plan(job_body(fields)))

    async def pipeline(self, id: str) -> Pipeline:
        """The jobs that follow each other, of which the first has this id. Raises NotFoundError."""
        return await self._http.fetch(endpoints.retrieve_pipeline(id))

    async def cancel_pipeline(self, id: str) -> Pipeline:
        """Cancel all of them that have not ended. Raises NotFoundError."""
        return await self._http.fetch(endpoints.cancel_pipeline(id))

    async def _step(self, number: int, step: Mapping[str, Any], key: str) -> dict[str, Any]:
        """A step as the API takes it, its local files uploaded for the request with this key."""
        made = {
            name: await self._uploaded(f"steps-{number}-{name}", value, key)
            if isinstance(value, Path)
            else value
            for name, value in step.items()
        }
        if isinstance(made.get("method"), str):
            made["method"] = method_object(made["method"], None)
        evaluate = step.get("evaluate")
        if isinstance(evaluate, Mapping):
            made["evaluate"] = await self._evaluate(f"steps-{number}-evaluate", evaluate, key)
        return job_body(made)

    async def _evaluate(self, name: str, evaluate: Mapping[str, Any], key: str) -> dict[str, Any]:
        """`evaluate` as the API takes it, its local file uploaded for the request with this key."""
        made = evaluate_object(evaluate)
        if isinstance(made.get("data"), Path):
            made["data"] = await self._uploaded(name, made["data"], key)
        return made

    async def _uploaded_once(self, files: Iterable[str | Path], key: str) -> dict[str | Path, str]:
        """The ids of files; those that are paths are uploaded, each once, for the request with this key."""
        return {
            file: await self._uploaded(f"training-{number}" if number else "training_file", file, key)
            if isinstance(file, Path)
            else file
            for number, file in enumerate(dict.fromkeys(files))
        }

    async def tensorboard(self, job_id: str, path: str | os.PathLike[str]) -> Path:
        """Download a job's TensorBoard files as a tar file, whose folder `tensorboard --logdir` shows; otherwise like
        `client.models.download`. Raises NotFoundError where it has none."""
        return await self._http.download(
            endpoints.download_tensorboard(job_id), f"{job_id}-tensorboard", path
        )

    def checkpoints(
        self, job_id: str, after: str | None = None, limit: int | None = None
    ) -> AsyncPager[Checkpoint]:
        """The checkpoints of a job, newest first."""
        return self._http.page(endpoints.list_checkpoints(job_id, after, limit))
