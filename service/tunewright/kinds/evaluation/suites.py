"""Evaluations whose questions are a suite's, which the operator provides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from tunewright.evaluator.folder import AskedSuite
from tunewright.evaluator.suites import LETTERS, SUITES
from tunewright.kinds.evaluation.models import (
    EvaluatedModel,
    EvaluationPlan,
    EvaluationRequest,
    SuiteRequest,
)
from tunewright.kinds.kind import JobRefused, Service, Validated
from tunewright.metrics.names import OF_SCORES
from tunewright.rows.faults import InvalidData
from tunewright.store.records import Engine, Job

NO_EVAL_DATA = (
    "the operator of this service provides no questions: --eval-data names a folder with them, as "
    "docs/how-to/evaluate-models.md describes"
)
_CACHED = 1
"""The version of the answers that are kept: raised where suites are asked otherwise."""


def fitting(tokens: int, engines: Sequence[Engine]) -> int:
    """So many tokens of an answer, or half of the smallest context."""
    contexts = [engine.info.max_model_len for engine in engines if engine.info and engine.info.max_model_len]
    return max(1, min(tokens, min(contexts, default=2 * tokens) // 2))


def validated_suite(
    service: Service, request: EvaluationRequest, asked: SuiteRequest, engines: Sequence[Engine]
) -> Validated:
    suite, data = SUITES[asked.name], service.settings.jobs.eval_data
    if data is None:
        raise JobRefused("no_eval_data", NO_EVAL_DATA, "suite")
    try:
        sha256 = suite.sha256(data)
    except (InvalidData, OSError) as error:
        raise JobRefused("no_eval_data", str(error), "suite") from error
    most = request.max_tokens or fitting(suite.max_tokens, engines)
    return Validated(EvaluationPlan(suite_sha256=sha256, max_tokens=most), f"Files of {suite.name} found")


def asked_suite(service: Service, suite: SuiteRequest) -> AskedSuite:
    jobs = service.settings.jobs
    return AskedSuite(**suite.model_dump(), data=str(jobs.eval_data), python=jobs.python_graders)


def at_once(places: int, suite: SuiteRequest | None) -> int:
    """Requests in flight, each of which may be several sequences: of choices, or of programs."""
    each = 1 if suite is None else len(LETTERS) if SUITES[suite.name].chance else suite.samples
    return max(1, places // each)


def cache_file(
    service: Service, job: Job, request: EvaluationRequest, plan: EvaluationPlan, model: EvaluatedModel
) -> str | None:
    """The file of a base's answers to a suite, or to the rows of an evaluation that a job has asked for, named by all
    that they depend on."""
    if model.has_weights or (request.suite is None and request.job is None):
        return None
    asked: list[Any] = [plan.suite_sha256, request.suite.model_dump() if request.suite is not None else None]
    if request.suite is None:
        named = {*(request.metrics or ()), *(limit.metric for limit in request.require or ())}
        is_generated, is_scored = not request.metrics or bool(named - OF_SCORES), bool(named & OF_SCORES)
        asked = [request.sha256, request.reading.model_dump(mode="json"), is_generated, is_scored]
    key = [_CACHED, model.content, *asked, request.rows, job.seed, request.temperature, plan.max_tokens]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return str(service.workspace.suite_answers / f"{name}.jsonl")
