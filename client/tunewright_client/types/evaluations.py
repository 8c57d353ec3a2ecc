"""Evaluations and their reports. Times are Unix seconds."""

from typing import Any

from pydantic import Field

from .base import Wire
from .jobs import WorkRecord
from .verdicts import Judgement


class EvaluationFigure(Wire):
    """A metric of one model, with the ends of its 95 % interval.

    - interval: how that was made: wilson or bootstrap
    """

    metric: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    interval: str = ""


class FieldAccuracy(Wire):
    """A field of JSON answers: the rows that expect it, and those in which the answer has it right."""

    field: str
    rows: int = 0
    right: int = 0


class Confusion(Wire):
    """How often an answer (the places in a list) was given where another (the lists) was expected; the last label is
    that of other answers."""

    labels: list[str] = Field(default_factory=list)
    counts: list[list[int]] = Field(default_factory=list[list[int]])


class EvaluatedFigures(Wire):
    """The figures of one model.

    - unanswered: rows without an answer, which count as wrong; first_error says why
    - ungraded: answers that the grader could not grade, which have the reward 0; first_grader_error says why
    - cut: answers that ended at max_tokens
    """

    model: str
    figures: list[EvaluationFigure] = Field(default_factory=list[EvaluationFigure])
    unanswered: int = 0
    first_error: str | None = None
    ungraded: int = 0
    first_grader_error: str | None = None
    cut: int = 0
    confusion: Confusion | None = None
    fields: list[FieldAccuracy] | None = None


class EvaluationComparison(Wire):
    """A metric of the evaluated model minus that of another one, with its 95 % interval and its p-value.

    - test: mcnemar_exact or permutation
    - better_rows, worse_rows: those in which the evaluated model is better or worse
    - conclusion: better, worse or no_difference_seen
    """

    against: str
    metric: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    test: str = ""
    better_rows: int | None = None
    worse_rows: int | None = None
    conclusion: str = ""


class ChangedRow(Wire):
    """A row in which two models differ; its place in the file counts from 1."""

    row: int
    asked: str = ""
    expected: str = ""
    answer: str | None = None
    other_answer: str | None = None
    value: float = 0.0
    other_value: float = 0.0


class ChangedRows(Wire):
    """The rows that differ most between the evaluated model and another one."""

    against: str
    metric: str
    better: list[ChangedRow] = Field(default_factory=list[ChangedRow])
    worse: list[ChangedRow] = Field(default_factory=list[ChangedRow])


class JudgedAnswers(Wire):
    """What a judge has made of the answers of two models; a win was preferred in both orders.

    - inconsistent: ties in which the same place was preferred in both orders
    - unjudged: ties in which the judge has said nothing of the kind
    - first_preferred: of its choices, the share of the answer that came first
    """

    against: str
    judge: str = ""
    wins: int = 0
    ties: int = 0
    losses: int = 0
    inconsistent: int = 0
    unjudged: int = 0
    first_preferred: float | None = None


class JudgeCalibration(Wire):
    """How a judge agrees with the data about pairs whose better answer is known; kappa is Cohen's."""

    rows: int = 0
    agreement: float = 0.0
    kappa: float | None = None
    ties: int = 0


class LatencyPercentiles(Wire):
    """Milliseconds, with their 95 % intervals."""

    p50: float
    p50_low: float
    p50_high: float
    p99: float
    p99_low: float
    p99_high: float


class LoadFigures(Wire):
    """A model under a load of so many requests at once. Times are those of `LatencyPercentiles`; the price is of a
    million tokens of answers at this load."""

    model: str
    at_once: int
    requests: int = 0
    failed: int = 0
    first_error: str | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    tokens_per_second: float
    tokens_per_second_low: float | None = None
    tokens_per_second_high: float | None = None
    first_token: LatencyPercentiles | None = None
    between_tokens: LatencyPercentiles | None = None
    whole: LatencyPercentiles | None = None
    price_per_million_tokens: float | None = None
    currency: str | None = None
    device_memory_bytes: int | None = None


class EvaluationReport(Wire):
    """What was measured.

    - metrics, why: the metrics, and why these
    - models: figures of each model, the evaluated one first
    - skipped: rows without an answer in words
    - judgement: whether the evaluated model keeps the limits of the request; None without limits
    """

    rows: int = 0
    rows_in_file: int = 0
    skipped: int = 0
    metrics: list[str] = Field(default_factory=list)
    why: str = ""
    max_tokens: int | None = None
    seed: int = 0
    models: list[EvaluatedFigures] = Field(default_factory=list[EvaluatedFigures])
    comparisons: list[EvaluationComparison] = Field(default_factory=list[EvaluationComparison])
    changed: list[ChangedRows] = Field(default_factory=list[ChangedRows])
    judged: list[JudgedAnswers] | None = None
    calibration: JudgeCalibration | None = None
    loads: list[LoadFigures] | None = None
    judgement: Judgement | None = None

    def figure(self, metric: str, model: str | None = None) -> EvaluationFigure | None:
        """A figure of a model; without a name, of the evaluated one. None where it was not measured."""
        of = next((one for one in self.models if model in (None, one.model)), None)
        return next((one for one in of.figures if one.metric == metric), None) if of else None


class EvaluatedModel(Wire):
    """A model of an evaluation, as it was when that was created: asked is the name in the request, maybe an alias;
    content the hash of its weights."""

    name: str
    asked: str = ""
    content: str = ""


class EvaluationRecord(WorkRecord):
    """A job that measures answers of models. The clients return it as `Evaluation` or `AsyncEvaluation`.

    - model, against: the evaluated model, and those that it is compared with
    - data, filename: the file of the rows; data is None where a suite has the questions
    - job: the fine-tuning job that has asked for it
    - results_file: the id of a file with a line for each row: the question, and the answers
    """

    object: str = "evaluation"
    started_at: int | None = None
    against: list[str] = Field(default_factory=list)
    models: list[EvaluatedModel] = Field(default_factory=list[EvaluatedModel])
    data: str | None = None
    filename: str = ""
    suite: dict[str, Any] | None = None
    load: dict[str, Any] | None = None
    reading: dict[str, Any] | None = None
    metrics: str | list[str] = "auto"
    extract: str = "whole"
    json_schema: dict[str, Any] | None = None
    grader: dict[str, Any] | None = None
    judge: dict[str, Any] | None = None
    require: list[dict[str, Any]] | None = None
    rows: int | None = None
    temperature: float = 0.0
    max_tokens: int | None = None
    report: EvaluationReport | None = None
    job: str | None = None
    results_file: str | None = None

    @property
    def product(self) -> str | None:
        """`results_file`, the id of the file with all answers."""
        return self.results_file
