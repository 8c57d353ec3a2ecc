"""Evaluations: requests, their state and their reports."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from tunewright.api.fine_tuning.data import FileReading
from tunewright.api.jobs.schemas import JobError, JobEventBody, Metadata, estimated_finish
from tunewright.evaluator.report import EvaluationReport
from tunewright.graders.json_values import Schema
from tunewright.graders.models import Grader
from tunewright.kinds.evaluation.kind import file_of, request_of
from tunewright.kinds.evaluation.models import (
    EvaluationPlan,
    EvaluationRequest,
    EvaluationResult,
    JudgeRequest,
)
from tunewright.metrics.names import Extract, MetricName, SuiteName
from tunewright.metrics.verdicts import Limit
from tunewright.store.records import Job
from tunewright.store.states import JobState
from tunewright.wire import Body, Text, Wire

_Metric = MetricName | Literal["latency"]
_Name = Annotated[str, Field(min_length=1, max_length=512)]


class JudgeBody(Body):
    """A model that says which of two answers is better, for the metric judge. It is asked twice, with the answers in
    both orders."""

    model: _Name | None = Field(
        None, description="A base, an adapter, a deployed model, or an alias with one target."
    )
    external: bool = Field(
        False, strict=True, description="In the place of `model`: the judge of the operator, `--judge-url`."
    )
    instructions: Text | None = Field(
        None,
        min_length=1,
        max_length=8_192,
        description="The system message, in the place of the usual one. It must ask for JSON with `winner`: A, B or "
        "tie.",
    )
    show_expected: bool = Field(
        True, strict=True, description="Whether it sees the expected answer, as a reference."
    )
    calibrate: int = Field(
        0,
        ge=0,
        le=2_000,
        description="Also judge so many pairs of the file whose better answer is known (preferences), and tell how the "
        "judge agrees with them.",
    )

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.model is not None) == self.external:
            raise ValueError("give `model`, or `external` true")
        return self


class SuiteBody(Body):
    """Questions that the operator provides, asked as lm-evaluation-harness asks them."""

    name: SuiteName
    shots: int | None = Field(
        None, ge=0, le=25, description="Examples before each question. Default: 5, of humaneval none."
    )
    samples: int = Field(
        1, ge=1, le=200, description="Programs for each question of humaneval; pass_at_10 needs 10 of them."
    )


class LoadBody(Body):
    """Requests at once, and their tokens."""

    at_once: list[Annotated[int, Field(ge=1, le=1024)]] | None = Field(
        None,
        min_length=1,
        max_length=10,
        description="The loads: requests in flight at a time, each followed by the next. Default: 1, and a quarter of "
        "the sequences that the engine runs at once. With more, live requests wait for their turns beside these.",
    )
    prompt_tokens: int = Field(128, ge=1, le=131_072, description="Of each request.")
    answer_tokens: int = Field(128, ge=1, le=32_768, description="Of each answer, which does not end before.")
    requests: int = Field(100, ge=1, le=10_000, description="Of each load; P99 needs 100 or more.")


class CreateEvaluation(Body):
    """The models, the rows, and what is measured."""

    model: _Name = Field(
        description="The model that is evaluated: a base, an adapter, a deployed model, or an alias with one target, "
        "of which the present target is evaluated."
    )
    against: list[_Name] = Field(
        default_factory=list, max_length=7, description="Models that it is compared with, on the same rows."
    )
    data: Text | None = Field(
        None,
        max_length=64,
        description="The id of a file for fine-tune, of conversations, prompts with completions, or preferences (the "
        "better answer counts). The last answer of each row is what is expected; what is before it is asked.",
    )
    suite: SuiteBody | None = Field(
        None,
        description="In the place of `data`: a suite by which forgetting is measured. Where `against` is empty, an "
        "adapter is compared with its base. The report's `judgement` says whether the model is below the others by "
        "more than 5 % (mmlu, ceval) or 10 % (gsm8k, humaneval) of what they have right.",
    )
    reading: FileReading | None = Field(None, description="How the file is read.")
    metrics: Literal["auto"] | Annotated[list[_Metric], Field(min_length=1, max_length=15)] = Field(
        "auto",
        description="auto: by the form of the expected answers, as the report's `why` says. JSON: json_valid, "
        "schema_valid with a `json_schema`, field_accuracy. Labels: accuracy, macro_f1, weighted_f1. Short answers: "
        "exact_match, token_f1 (as SQuAD's script). Longer ones: rougeL, chrf, bleu. latency is measured alone, "
        "without `data`.",
    )
    load: LoadBody | None = Field(None, description="What latency is measured under.")
    extract: Extract = Field(
        "whole",
        description="The part of each answer, and of the expected one, that is compared; metrics of JSON and of tokens "
        "take the whole.",
    )
    json_schema: Schema | None = Field(None, description="The schema for schema_valid.")
    grader: Grader | None = Field(
        None,
        description="A grader as of fine-tuning, but none that asks a model; the metric grader is its mean reward. It "
        "refers to item.asked and item.expected of a row.",
    )
    judge: JudgeBody | None = Field(
        None,
        description="Compares the answers with those of each of `against`: the metric judge is the share of wins, a "
        "tie counting half.",
    )
    require: list[Limit] | None = Field(
        None,
        min_length=1,
        max_length=15,
        description="Limits of metrics that are measured; the report's `judgement` says whether the model keeps them.",
    )
    rows: int | None = Field(
        None, ge=1, le=20_000, description="How many rows are drawn. Default: all, up to 20,000."
    )
    temperature: float = Field(0.0, ge=0, le=2, description="0: the likeliest token each time.")
    max_tokens: int | None = Field(
        None, ge=1, le=32_768, description="Of an answer. Default: 256, at most half of the smallest context."
    )
    seed: int = Field(
        0, ge=0, le=2**31 - 1, description="Of the rows that are drawn, and of all that is random."
    )
    metadata: Metadata = Field(None, description="Up to 16 pairs, kept with the evaluation.")

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, value: Any) -> Any:
        if isinstance(value, list) and len(set(value)) < len(value):
            raise ValueError("each metric at most once")
        return value


class EvaluatedModelObject(Wire):
    """A model, as it was when the evaluation was created."""

    name: str
    asked: str = Field(description="The name in the request: another one where that was an alias.")
    content: str = Field(description="The hash of its weights, or the fingerprint of a base.")


class EvaluationProgress(Wire):
    """The answers so far."""

    step: int = Field(description="Answers that are there.")
    total_steps: int = Field(description="Those of all models to all rows.")
    phase: str | None = None
    eta_seconds: float | None = None


class EvaluationObject(Wire):
    """A job that asks models what the rows of a file ask, and measures their answers."""

    id: str
    object: Literal["evaluation"] = "evaluation"
    created_at: int
    started_at: int | None
    finished_at: int | None
    status: JobState
    model: str = Field(description="The evaluated model: never an alias.")
    against: list[str]
    models: list[EvaluatedModelObject] = Field(description="`model`, then those of `against`.")
    data: str | None
    filename: str
    suite: SuiteBody | None
    load: LoadBody | None
    reading: FileReading | None
    metrics: Literal["auto"] | list[_Metric] = Field(
        description="As asked for; the report has what auto became."
    )
    extract: Extract
    json_schema: dict[str, Any] | None
    grader: Grader | None
    judge: JudgeBody | None
    require: list[Limit] | None
    rows: int | None
    temperature: float
    max_tokens: int | None = Field(description="Null until it is known.")
    seed: int
    progress: EvaluationProgress | None
    estimated_finish: int | None
    error: JobError | None
    report: EvaluationReport | None
    job: str | None = Field(None, description="The fine-tuning job that has asked for it.")
    results_file: str | None = Field(
        description="JSONL with a line for each row: what was asked and expected, the models' answers and figures."
    )
    metadata: dict[str, str] | None
    model_config = ConfigDict(protected_namespaces=())

    @classmethod
    def of(cls, job: Job) -> EvaluationObject:
        request, progress = request_of(job), job.progress
        given = request.reading.model_dump(exclude_defaults=True)
        models = [
            EvaluatedModelObject(**one.model_dump(include={"name", "asked", "content"}))
            for one in request.models
        ]
        return cls(
            id=job.id,
            created_at=int(job.created_at),
            started_at=int(job.started_at) if job.started_at else None,
            finished_at=int(job.finished_at) if job.finished_at else None,
            status=job.state,
            model=models[0].name,
            against=[model.name for model in models[1:]],
            models=models,
            data=file_of(job),
            filename=request.filename,
            suite=SuiteBody(**request.suite.model_dump()) if request.suite else None,
            load=LoadBody(**request.load.model_dump()) if request.load else None,
            reading=FileReading(**given) if given else None,
            metrics=_shown_metrics(request),
            extract=request.extract,
            json_schema=request.json_schema,
            grader=request.grader,
            judge=_judge(request.judge) if request.judge else None,
            require=request.require,
            rows=request.rows,
            temperature=request.temperature,
            max_tokens=job.resolved.max_tokens
            if isinstance(job.resolved, EvaluationPlan)
            else request.max_tokens,
            seed=job.seed,
            progress=EvaluationProgress(**progress.model_dump(include=set(EvaluationProgress.model_fields)))
            if progress
            else None,
            estimated_finish=estimated_finish(job),
            error=JobError.of(job.error),
            report=job.report if isinstance(job.report, EvaluationReport) else None,
            job=request.job,
            results_file=job.result.file if isinstance(job.result, EvaluationResult) else None,
            metadata=job.metadata,
        )


def _judge(of: JudgeRequest) -> JudgeBody:
    model = of.model.name if of.model is not None else None
    return JudgeBody(model=model, external=model is None, **of.model_dump(exclude={"model"}))


def _shown_metrics(request: EvaluationRequest) -> Any:
    if request.load is not None:
        return ["latency"]
    return "auto" if request.metrics is None else request.metrics


class EvaluationEventObject(JobEventBody):
    """An evaluation's event. Metric events have their numbers in `data`."""

    object: Literal["evaluation.event"] = "evaluation.event"
    data: dict[str, Any] | None = Field(description="step, total_steps (answers), phase, eta_seconds.")
