"""`evaluate` of a fine-tuning job: what is measured of its model and its checkpoints, and when."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tunewright.api.evaluations.schemas import JudgeBody, SuiteBody
from tunewright.api.fine_tuning.data import FileReading
from tunewright.graders.json_values import Schema
from tunewright.graders.models import Grader
from tunewright.kinds.fine_tuning.evaluated import Point, Select
from tunewright.metrics.names import Extract, MetricName
from tunewright.metrics.verdicts import Limit
from tunewright.wire import Body, Text


class Evaluate(Body):
    """Evaluations that the service makes of a job's adapters, each against the base. The job succeeds when they have
    ended; one that fails is told, and fails no job."""

    data: Text | None = Field(
        None, max_length=64, description="The id of a file with rows that are not trained on."
    )
    suites: Annotated[list[SuiteBody], Field(min_length=1, max_length=4)] | None = Field(
        None, description="Suites of the operator by which forgetting is measured, each with its own limit."
    )
    at: Annotated[list[Point], Field(min_length=1, max_length=3)] | None = Field(
        None,
        description="before: the base, which is measured once for the same rows. checkpoints: those at the ends of the "
        "last three epochs. end: the last state. All are asked after training, but for the base. Default: before and "
        "end; with `select` best, all.",
    )
    select: Select = Field(
        "last",
        description="What becomes the job's model. last: the last state. best: of the checkpoints that keep all limits "
        "the one with the best `metric`; where none is seen to, of those of which the rows do not tell; where all miss "
        "one, the last state, with the verdict fail.",
    )
    metric: MetricName | None = Field(
        None, description="By which the best one is found. Default: the first metric that is measured."
    )
    metrics: Literal["auto"] | Annotated[list[MetricName], Field(min_length=1, max_length=15)] = Field(
        "auto", description="Of `data`, as of POST /v1/evaluations."
    )
    extract: Extract = "whole"
    reading: FileReading | None = Field(None, description="How the file is read.")
    json_schema: Schema | None = Field(None, description="The schema for schema_valid.")
    grader: Grader | None = None
    judge: JudgeBody | None = Field(None, description="Compares the answers with those of the base.")
    require: Annotated[list[Limit], Field(min_length=1, max_length=15)] | None = Field(
        None, description="Limits of the metrics of `data`. `max_drop` is against the base."
    )
    rows: int | None = Field(
        None, ge=1, le=20_000, description="How many rows, or questions of each suite, are drawn."
    )
    temperature: float = Field(0.0, ge=0, le=2)
    max_tokens: int | None = Field(None, ge=1, le=32_768)
    seed: int = Field(0, ge=0, le=2**31 - 1)

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if self.data is None and self.suites is None:
            raise ValueError("give `data`, `suites`, or both")
        if self.at is not None and len(set(self.at)) < len(self.at):
            raise ValueError("each of `at` once")
        names = [suite.name for suite in self.suites or ()]
        if len(set(names)) < len(names):
            raise ValueError("each suite once")
        if self.metric is not None and self.select != "best":
            raise ValueError("`metric` is for `select` best")
        if self.select == "best":
            if self.data is None:
                raise ValueError("`select` best needs `data`, on which the checkpoints are compared")
            if self.at is not None and "checkpoints" not in self.at:
                raise ValueError("`select` best needs `at` checkpoints")
        if self.metric is not None and self.metrics != "auto" and self.metric not in self.metrics:
            raise ValueError("`metric` is not among `metrics`")
        return self

    def points(self) -> list[Point]:
        """`at`, with its default."""
        if self.at is not None:
            return self.at
        return ["before", "checkpoints", "end"] if self.select == "best" else ["before", "end"]
