"""Evaluations: `client.evaluations`, and the record with the methods of one evaluation."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from .._core import endpoints
from .._core.ratings import choices, rate_pairs, rating_pairs, retrieve_ratings
from ..types import EvaluationRecord, Ratings
from .job_resource import AsyncBoundJob, AsyncJobResource


class AsyncEvaluation(AsyncBoundJob, EvaluationRecord):
    """An evaluation as it was when it was read, with methods that ask its client. The record does not change:
    `refresh` returns a new one."""


class AsyncEvaluations(AsyncJobResource[AsyncEvaluation]):
    """`client.evaluations`: the answers of models, measured and compared. An evaluation is a job, so `job_id` arguments
    take the id of an evaluation."""

    _path = endpoints.EVALUATIONS
    _record = AsyncEvaluation

    async def create(
        self,
        model: str,
        data: str | Path | None = None,
        *,
        suite: str | Mapping[str, Any] | None = None,
        load: Mapping[str, Any] | None = None,
        against: str | Sequence[str] = (),
        metrics: str | Sequence[str] = "auto",
        reading: Mapping[str, Any] | None = None,
        extract: str | None = None,
        json_schema: Mapping[str, Any] | None = None,
        grader: Mapping[str, Any] | None = None,
        judge: str | Mapping[str, Any] | None = None,
        require: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
        rows: int | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncEvaluation:
        """Ask a model what the rows of a file, or the questions of a suite, ask, and measure its answers.

        - model: a base, an adapter, a deployed model, or an alias, of which the present target is evaluated
        - data: the id of a file, or a pathlib.Path of a local file, which is uploaded first. The last answer of each
          row is what is expected
        - suite: in the place of data, a suite by which forgetting is measured: mmlu, ceval, gsm8k or humaneval, or a
          mapping with its `name`, `shots` and `samples`. An adapter is then compared with its base
        - load: with the metric "latency", which needs no data: `at_once`, the requests in flight at a time of each
          load, `prompt_tokens`, `answer_tokens` and `requests`
        - against: models that answer the same rows, and are compared with the evaluated one
        - metrics: "auto", a name or names, such as "accuracy" or ["exact_match", "token_f1"]: those of
          docs/how-to/evaluate-models.md
        - reading: how the file is read: columns, tags, alpaca, as `data` of jobs
        - extract: the part of answers that is compared: whole (the default), first_line, last_line, last_number
        - json_schema: the JSON schema for the metric schema_valid
        - grader: a grader as of fine-tuning, for the metric grader, its mean reward; its texts refer to item.asked and
          item.expected
        - judge: a model that compares the answers with those of each of `against`, for the metric judge: its name, or
          an object with model (or external), instructions, show_expected, calibrate
        - require: limits of metrics, such as {"metric": "accuracy", "min": 0.8, "max_drop": 0.02}, or a list of them;
          the report's `judgement` says whether the model keeps them: pass, fail or not_enough_data
        - rows: how many are drawn; all without it
        - temperature, max_tokens: of the answers; by default the likeliest tokens, at most 256 of them
        - seed: of the rows that are drawn, of sampled answers and of intervals
        - idempotency_key: all calls with the same key give the same evaluation

        `report` has the figures when it has succeeded. Raises BadRequestError for a request that cannot succeed,
        NotFoundError for an unknown model, FileNotFoundError for a missing local file.
        """
        named = metrics if metrics == "auto" else [metrics] if isinstance(metrics, str) else list(metrics)
        fields = {
            "model": model,
            "suite": {"name": suite} if isinstance(suite, str) else suite,
            "load": load,
            "against": [against] if isinstance(against, str) else list(against) or None,
            "metrics": named,
            "reading": reading,
            "extract": extract,
            "json_schema": json_schema,
            "grader": grader,
            "judge": {"model": judge} if isinstance(judge, str) else judge,
            "require": [require] if isinstance(require, Mapping) else require,
            "rows": rows,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "seed": seed,
            "metadata": metadata,
        }
        files = {"data": data} if data is not None else {}
        return await self._create(files, idempotency_key or str(uuid.uuid4()), fields)

    async def pairs(
        self,
        evaluation_id: str,
        *,
        against: str | None = None,
        rows: int | None = None,
        format: Literal["jsonl", "csv"] = "jsonl",
    ) -> str:
        """Pairs of answers for people to rate, in random order and without the models' names, as JSONL or CSV: id,
        asked, a, b, and choice, which is filled with a, b or tie. Raises BadRequestError where there are none."""
        return await self._http.fetch(rating_pairs(evaluation_id, against, rows, format))

    async def rate(
        self,
        evaluation_id: str,
        rater: str,
        ratings: str | Path | Mapping[str, str] | Sequence[Mapping[str, Any]],
    ) -> Ratings:
        """Store the choices of a person, in the place of the person's earlier ones of the same pairs, and return what
        all have chosen.

        `ratings` are choices by the ids of the pairs, a list of objects with id and choice, or the text or the
        pathlib.Path of a file that `pairs` has made and a person has filled; pairs without a choice are left out.
        Raises ValueError where there is no choice, and BadRequestError for an id that is no pair.
        """
        return await self._http.fetch(rate_pairs(evaluation_id, rater, choices(ratings)))

    async def ratings(self, evaluation_id: str) -> Ratings:
        """What people have chosen, with intervals, and how they agree. Raises NotFoundError."""
        return await self._http.fetch(retrieve_ratings(evaluation_id))
