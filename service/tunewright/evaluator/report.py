"""What an evaluation has measured: figures with intervals, comparisons, and the rows that differ most."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from tunewright.metrics.names import MetricName
from tunewright.metrics.verdicts import Judgement
from tunewright.wire import Wire


class Figure(Wire):
    """A metric of one model, with its 95 % interval."""

    metric: MetricName
    value: float | None = Field(description="0 to 1; of bleu and chrf 0 to 100; of perplexity from 1 on.")
    low: float | None = Field(description="The lower end of the interval.")
    high: float | None = Field(description="Its upper end.")
    interval: Literal["wilson", "bootstrap"] = Field(
        description="wilson: of a share. bootstrap: percentiles of 10,000 samples of the rows."
    )


class FieldAccuracy(Wire):
    """A field of the expected answers, which are JSON."""

    field: str = Field(description="Its path; `a[].b` for the items of a list.")
    rows: int = Field(description="Rows whose expected answer has it.")
    right: int = Field(description="Rows in which the answer has the same value there.")


class Confusion(Wire):
    """How often which answer was given where which was expected. The last label is that of other answers."""

    labels: list[str]
    counts: list[list[int]] = Field(
        description="A list for each expected label, with a number for each answer."
    )


class ModelFigures(Wire):
    """The answers of one model."""

    model_config = ConfigDict(protected_namespaces=())

    model: str
    figures: list[Figure]
    unanswered: int = Field(description="Rows without an answer, which count as wrong.")
    first_error: str | None = Field(description="Why the first of them has none.")
    ungraded: int = Field(
        0, description="With the metric grader, answers that could not be graded, which have the reward 0."
    )
    first_grader_error: str | None = None
    cut: int = Field(description="Answers that ended at max_tokens.")
    confusion: Confusion | None = Field(description="With the metrics of labels, of up to 50 labels.")
    fields: list[FieldAccuracy] | None = Field(description="With field_accuracy, up to 100 fields.")


class Comparison(Wire):
    """A metric of the evaluated model minus that of another one, on the same rows."""

    against: str
    metric: MetricName
    difference: float | None
    low: float | None = Field(description="The lower end of its 95 % interval.")
    high: float | None
    p_value: float | None = Field(description="Of the hypothesis that there is no difference.")
    test: Literal["mcnemar_exact", "permutation"]
    better_rows: int | None = Field(description="Rows in which the evaluated model is better.")
    worse_rows: int | None
    conclusion: Literal["better", "worse", "no_difference_seen"] = Field(
        description="better or worse where p_value is below 0.05; each comparison is judged alone."
    )


class ChangedRow(Wire):
    """A row in which two models differ. Texts are cut at 400 characters."""

    row: int = Field(description="In the file, from 1.")
    asked: str = Field(description="The last message, or the prompt.")
    expected: str
    answer: str | None
    other_answer: str | None
    value: float
    other_value: float


class Changed(Wire):
    """The rows that differ most between the evaluated model and another one."""

    against: str
    metric: MetricName
    better: list[ChangedRow] = Field(
        description="The evaluated model is better; the largest difference first."
    )
    worse: list[ChangedRow]


class Judged(Wire):
    """What a judge has made of the answers of the evaluated model and another one. Each pair was judged in both orders;
    an answer wins where it is preferred in both."""

    against: str
    judge: str
    wins: int = Field(description="Rows in which the evaluated model is preferred.")
    ties: int
    losses: int
    inconsistent: int = Field(
        description="Ties in which the judge preferred the same place in both orders, and so two answers."
    )
    unjudged: int = Field(description="Ties in which it has not said which answer is better.")
    first_preferred: float | None = Field(
        description="Of its choices, the share of the answer that came first; without a preference for places, 0.5."
    )


class Calibration(Wire):
    """How a judge agrees with the data, which says which of two answers is better."""

    rows: int
    agreement: float = Field(description="The share of the pairs whose better answer it prefers.")
    kappa: float | None = Field(description="Cohen's: 0 is as good as chance, 1 always right.")
    ties: int = Field(description="Pairs of which it prefers neither.")


class Percentiles(Wire):
    """Milliseconds, with the 95 % intervals of the bootstrap over requests."""

    p50: float = Field(description="The median.")
    p50_low: float
    p50_high: float
    p99: float = Field(description="Of fewer than 100 times the largest one.")
    p99_low: float
    p99_high: float


class LoadFigures(Wire):
    """A model under a load."""

    model_config = ConfigDict(protected_namespaces=())

    model: str
    at_once: int = Field(description="Requests in flight at a time.")
    requests: int
    failed: int = Field(description="Requests without an answer, which are in no other figure.")
    first_error: str | None
    prompt_tokens: int = Field(description="Of each request.")
    tokens: int = Field(description="Of all answers.")
    seconds: float = Field(description="From the first request to the end of the last answer.")
    tokens_per_second: float = Field(description="Of the answers of all requests together.")
    tokens_per_second_low: float
    tokens_per_second_high: float
    first_token: Percentiles | None = Field(description="From the request to its first token.")
    between_tokens: Percentiles | None = Field(
        description="Between two arrivals of tokens; null where answers have one token."
    )
    whole: Percentiles | None = Field(description="From the request to its last token.")
    price_per_million_tokens: float | None = Field(
        description="Of answers, at this load, from --price-per-hour; null without it."
    )
    currency: str | None
    device_memory_bytes: int | None = Field(
        None,
        description="GPU memory of the engine after the loads, which keeps what it has taken; null on the CPU.",
    )


class EvaluationReport(Wire):
    """The result of an evaluation."""

    rows: int = Field(description="Rows that were asked.")
    rows_in_file: int
    skipped: int = Field(description="Drawn rows without an answer in words, such as tool calls.")
    metrics: list[MetricName]
    why: str = Field(description="Why these metrics.")
    max_tokens: int
    seed: int = Field(
        description="Of the drawn rows, of sampled answers, of the bootstrap and of permutations."
    )
    models: list[ModelFigures] = Field(description="The evaluated one first.")
    comparisons: list[Comparison]
    changed: list[Changed]
    judged: list[Judged] | None = Field(None, description="With the metric judge, for each other model.")
    calibration: Calibration | None = Field(
        None, description="With `judge.calibrate`, on pairs of the file that have a better answer."
    )
    loads: list[LoadFigures] | None = Field(None, description="With the metric latency.")
    judgement: Judgement | None = Field(
        None, description="Whether the evaluated model keeps the limits of `require`; null without limits."
    )

    def told(self) -> list[str]:
        """The figures in a line for each model, for its events."""
        lines = []
        for model in self.models:
            shown = [
                f"{one.metric} {_number(one.value)} ({_number(one.low)} to {_number(one.high)})"
                for one in model.figures
            ]
            lines.append(f"{model.model}: {', '.join(shown)}")
        for load in self.loads or []:
            first, whole = load.first_token, load.whole
            if first is not None and whole is not None:
                lines.append(
                    f"{load.model}, {load.at_once} at once: {load.tokens_per_second:.4g} tokens/s, first token P50 "
                    f"{first.p50:.4g} ms, P99 {first.p99:.4g} ms, whole P50 {whole.p50:.4g} ms, P99 {whole.p99:.4g} ms"
                )
        if self.judgement is not None:
            lines.append(f"Verdict on {self.models[0].model}: {self.judgement.told()}")
        return lines

    def figure(self, metric: str) -> Figure | None:
        """That of the evaluated model."""
        of = self.models[0].figures if self.models else []
        return next((one for one in of if one.metric == metric), None)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
