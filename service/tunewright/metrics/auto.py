"""Which metrics suit data, by the form of the expected answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from tunewright.metrics.names import MetricName
from tunewright.metrics.texts import label

_MOST_LABELS, _LONGEST_LABEL, _ROWS_PER_LABEL = 50, 60, 3
_LONGEST_SHORT_ANSWER = 8
"""Words."""


class Choice(NamedTuple):
    metrics: tuple[MetricName, ...]
    why: str


def choose(expected: Sequence[str], *, has_schema: bool = False) -> Choice:
    """The metrics for rows with these expected answers, and the reason."""
    valid = sum(map(_is_json_object, expected))
    if has_schema or valid == len(expected):
        metrics: tuple[MetricName, ...] = ("json_valid", "field_accuracy")
        if has_schema:
            metrics = ("json_valid", "schema_valid", "field_accuracy")
        why = "a schema was given" if has_schema else "every expected answer is a JSON object"
        return Choice(metrics, f"structured output: {why}")
    labels = Counter(map(label, expected))
    longest = max(map(len, labels), default=0)
    if (
        1 < len(labels) <= _MOST_LABELS
        and longest <= _LONGEST_LABEL
        and len(expected) >= _ROWS_PER_LABEL * len(labels)
    ):
        return Choice(
            ("accuracy", "macro_f1", "weighted_f1"),
            f"classification: the {len(expected)} expected answers are {len(labels)} labels",
        )
    lengths = sorted(len(text.split()) for text in expected)
    median = lengths[len(lengths) // 2] if lengths else 0
    if median <= _LONGEST_SHORT_ANSWER:
        return Choice(
            ("exact_match", "token_f1"),
            f"short answers: half of the expected ones have at most {median} words",
        )
    return Choice(
        ("rougeL", "chrf", "bleu"), f"texts: half of the expected answers have {median} words or more"
    )


def _is_json_object(text: str) -> bool:
    if not text.lstrip().startswith(("{", "```")):
        return False
    from tunewright.metrics.structured import NOT_JSON, parsed

    value = parsed(text)
    return value is not NOT_JSON and isinstance(value, dict | list)
