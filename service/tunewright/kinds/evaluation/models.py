"""The models of an evaluation's columns: the request, what was resolved, and the result. The report is that of
`evaluator.report`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from tunewright.graders.models import Grader
from tunewright.jobs.kinds import JobResult
from tunewright.kinds.data import DataOptions
from tunewright.metrics.names import Extract, MetricName, SuiteName
from tunewright.metrics.verdicts import Limit

DATA_FILE, WEIGHTS = "data", "model"
"""Roles of an evaluation's inputs: the rows, and the weights of the adapters and full models in their order."""


class EvaluatedModel(BaseModel):
    """A model that is asked. What its name stood for was looked up once, when the evaluation was created."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    asked: str
    """The name in the request; maybe an alias."""
    name: str
    """The model: never an alias."""
    engine: str
    content: str
    """The hash of its weights, or of a base its fingerprint."""
    has_weights: bool
    """Whether its weights are an input of the job."""


class JudgeRequest(BaseModel):
    """The judge of pairs of answers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: EvaluatedModel | None = None
    """None: that of the operator, elsewhere."""
    instructions: str | None = None
    show_expected: bool = True
    calibrate: int = 0


class SuiteRequest(BaseModel):
    """A suite of questions of the operator's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: SuiteName
    shots: int | None = None
    samples: int = 1


class LoadRequest(BaseModel):
    """What latency is measured under."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at_once: list[int] | None = None
    """None: one request, and the share of an evaluation."""
    prompt_tokens: int = 128
    answer_tokens: int = 128
    requests: int = 100


class EvaluationRequest(BaseModel):
    """The request."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    models: list[EvaluatedModel]
    """The evaluated one, then those that it is compared with."""
    job: str | None = None
    """The id of the fine-tuning job that has asked for it."""
    filename: str = ""
    sha256: str = ""
    """The hash of the file; empty where a suite has the questions."""
    suite: SuiteRequest | None = None
    load: LoadRequest | None = None
    """Latency is measured, in the place of answers."""
    reading: DataOptions = DataOptions()
    metrics: list[MetricName] | None = None
    """None: auto."""
    extract: Extract = "whole"
    json_schema: dict[str, Any] | None = None
    grader: Grader | None = None
    judge: JudgeRequest | None = None
    require: list[Limit] | None = None
    """The limits of the verdict."""
    rows: int | None = None
    temperature: float = 0.0
    max_tokens: int | None = None


class EvaluationPlan(BaseModel):
    """What was found out before the start."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rows_in_file: int = 0
    suite_sha256: str | None = None
    """The hash of a suite's files."""
    has_template: bool = True
    """Whether Alpaca rows become conversations."""
    max_tokens: int


class EvaluationResult(JobResult):
    """The result of an evaluation."""

    file: str | None = None
    """Id of the file with the answers."""
