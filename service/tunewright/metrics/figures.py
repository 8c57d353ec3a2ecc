"""The table of each metric, of the answers of one model."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from jsonschema.protocols import Validator

from tunewright.metrics import overlap, structured, texts
from tunewright.metrics.intervals import Floats, Table, means, ratio
from tunewright.metrics.names import KINDS, OF_LABELS, OF_PROGRAMS, OF_SCORES, Extract, MetricName

OTHER = "(other)"
"""The class of answers that are none of the labels."""


class Scores(NamedTuple):
    """What a model gave the tokens of a row's expected answer."""

    nll: float
    """Nats, the sum over its tokens."""
    tokens: int
    right: int
    """Tokens that were the likeliest in their place."""


@dataclass(frozen=True)
class Measured:
    """The rows of one model. An answer is None where there is none: the row counts as wrong."""

    expected: Sequence[str]
    answers: Sequence[str | None]
    scores: Sequence[Scores | None] = ()
    passed: Sequence[Sequence[bool]] = ()
    """Of each row, whether each of its programs has passed; nothing where there is none."""
    extract: Extract = "whole"
    validator: Validator | None = None
    _texts: list[tuple[str, str]] = field(default_factory=list)

    def pairs(self) -> list[tuple[str, str]]:
        """The compared parts of each answer and of the expected one."""
        if not self._texts:
            self._texts.extend(
                (texts.extracted(answer or "", self.extract), texts.extracted(expected, self.extract))
                for answer, expected in zip(self.answers, self.expected, strict=True)
            )
        return self._texts


def table(metric: MetricName, rows: Measured) -> Table:
    """What the metric is computed from."""
    if metric in OF_SCORES:
        return _of_scores(metric, rows.scores)
    if metric in OF_PROGRAMS:
        return _of_programs(int(metric.removeprefix("pass_at_")), rows.passed)
    if metric in OF_LABELS:
        return _of_labels(metric, rows)
    if metric in _CORPUS:
        numbers, figure = _CORPUS[metric]
        return Table(np.array([numbers(*pair) for pair in rows.pairs()]), figure, KINDS[metric].scale)
    if metric in ("json_valid", "schema_valid", "field_accuracy"):
        return _of_json(metric, rows)
    value = _VALUES[metric]
    if metric == "exact_match" and rows.extract == "last_number":
        value = operator.eq  # SQuAD's rule leaves out the point and the sign of a number
    return means([value(*pair) for pair in rows.pairs()], is_share=KINDS[metric].is_share)


def row_values(metric: MetricName, rows: Table) -> Floats | None:
    """The metric of each row alone; None where it has no meaning for one row."""
    if metric in ("macro_f1", "weighted_f1"):
        return None
    return rows.figure(rows.numbers)


_CORPUS: dict[str, tuple[Callable[[str, str], list[float]], Callable[[Floats], Floats]]] = {
    "bleu": (overlap.bleu_numbers, overlap.bleu),
    "chrf": (overlap.chrf_numbers, overlap.chrf),
}
_VALUES: dict[str, Callable[[str, str], float]] = {
    "exact_match": texts.exact_match,
    "token_f1": texts.token_f1,
    "rouge1": lambda said, wanted: overlap.rouge_n(overlap.rouge_words(said), overlap.rouge_words(wanted), 1),
    "rouge2": lambda said, wanted: overlap.rouge_n(overlap.rouge_words(said), overlap.rouge_words(wanted), 2),
    "rougeL": lambda said, wanted: overlap.rouge_l(overlap.rouge_words(said), overlap.rouge_words(wanted)),
}


# labels


def labels_of(rows: Measured) -> list[str]:
    """The labels: what is expected."""
    return sorted({texts.label(expected) for _, expected in rows.pairs()})


def _classes(rows: Measured) -> tuple[list[str], list[int], list[int]]:
    """The labels; of each row the place of the answer (that behind the last for another one) and of the label."""
    labels = labels_of(rows)
    place = {name: at for at, name in enumerate(labels)}
    said = [place.get(texts.label(answer), len(labels)) for answer, _ in rows.pairs()]
    return labels, said, [place[texts.label(expected)] for _, expected in rows.pairs()]


def confusion(rows: Measured) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The labels and `OTHER`, and how often an answer (column) was given where another (row) was expected."""
    labels, said, wanted = _classes(rows)
    counts = np.zeros((len(labels) + 1, len(labels) + 1), dtype=np.int64)
    np.add.at(counts, (wanted, said), 1)
    return [*labels, OTHER], counts


def _of_labels(metric: MetricName, rows: Measured) -> Table:
    labels, said, wanted = _classes(rows)
    right = [ours == theirs for ours, theirs in zip(said, wanted, strict=True)]
    if metric == "accuracy":
        return means(right, is_share=True)
    count = len(labels)
    numbers = np.zeros((len(wanted), 3, count + 1))
    every = np.arange(len(wanted))
    numbers[every, 0, wanted] = right
    numbers[every, 1, said] = 1
    numbers[every, 2, wanted] = 1

    def figure(sums: Floats) -> Floats:
        same, given, expected = np.moveaxis(sums.reshape(len(sums), 3, count + 1)[:, :, :count], 1, 0)
        f1 = 2 * same / np.maximum(given + expected, 1)
        # a label that no row of a sample has is no label of that sample
        weights = (expected > 0).astype(np.float64) if metric == "macro_f1" else expected
        return np.asarray((f1 * weights).sum(1) / np.maximum(weights.sum(1), 1))

    return Table(numbers.reshape(len(wanted), -1), figure)


# programs


def _of_programs(k: int, passed: Sequence[Sequence[bool]]) -> Table:
    most = max(map(len, passed), default=0)
    return means([pass_at_k(len(one), sum(one), k) for one in passed], is_share=most <= 1)


def pass_at_k(n: int, right: int, k: int) -> float:
    """The probability that one of k programs passes, of n that were drawn and of which so many have passed: the
    unbiased estimate of Chen et al. 2021 (arXiv 2107.03374, equation 1). Zero where there are none."""
    if n - right < k:
        return 1.0 if right else 0.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - right + 1, n + 1))


# JSON


def _of_json(metric: MetricName, rows: Measured) -> Table:
    values = [
        structured.parsed(answer) if answer is not None else structured.NOT_JSON for answer in rows.answers
    ]
    if metric == "json_valid":
        return means([value is not structured.NOT_JSON for value in values], is_share=True)
    if metric == "schema_valid":
        assert rows.validator is not None, "it was checked that there is a schema"
        return means([structured.fits(value, rows.validator) for value in values], is_share=True)
    found = [right.values() for right in _right_fields(rows, values)]
    return Table(np.array([[sum(right), len(right)] for right in found], dtype=np.float64), ratio)


def _right_fields(rows: Measured, values: Sequence[Any]) -> list[dict[str, bool]]:
    return [
        structured.right_fields(value, structured.parsed(expected))
        for value, expected in zip(values, rows.expected, strict=True)
    ]


def by_field(rows: Measured) -> list[tuple[str, int, int]]:
    """The fields of the expected answers: name, rows that have it, and rows in which the answer is right in it. Items
    of lists are one field, `a[]`."""
    has: Counter[str] = Counter()
    right: Counter[str] = Counter()
    values = [
        structured.parsed(answer) if answer is not None else structured.NOT_JSON for answer in rows.answers
    ]
    for found in _right_fields(rows, values):
        by_name: dict[str, bool] = {}
        for path, is_right in found.items():
            name = structured.name_of(path)
            by_name[name] = by_name.get(name, True) and is_right
        has.update(by_name.keys())
        right.update(name for name, is_right in by_name.items() if is_right)
    return [(name, rows_with, right[name]) for name, rows_with in has.items()]


# tokens


def _of_scores(metric: MetricName, scores: Sequence[Scores | None]) -> Table:
    known = [one or Scores(0.0, 0, 0) for one in scores]
    if metric == "token_accuracy":
        return Table(np.array([[one.right, one.tokens] for one in known], dtype=np.float64), ratio)
    numbers = np.array([[one.nll, one.tokens] for one in known], dtype=np.float64)
    return Table(numbers, lambda sums: np.exp(ratio(sums)), scale=None)
