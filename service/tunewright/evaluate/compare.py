"""Compares what an adapter changes in the engine with what it changes in transformers and peft. Pure arithmetic.

Four sources give the log-probabilities of the same tokens. For each token

    effect    peft's adapter - transformers' base     the change that the adapter should make
    answer    the engine's adapter - its base         the change that it makes in the engine
    noise     the engine's base - transformers' base  the difference without any adapter

An adapter that is served as it was trained has answer = effect, up to noise. docs/decisions/0013 measures which errors
the bounds detect.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import chain
from typing import Any

from tunewright.evaluate.folder import Logprobs, ReferenceRow

LARGEST_NOISE = 0.25
"""Largest noise in nats (root mean square): above it, the engine and the reference do not have the same base."""
SLOPE_OFF = 0.1
"""Largest difference of the slope from 1."""
LARGEST_RESIDUAL = (2.0, 0.03)
"""(a, b): the largest residual (root mean square) is a times the noise plus b times the effect."""
SMALLEST_EFFECT = 3.0
"""Smallest effect that can be judged, as a multiple of the noise."""
_WORST_ROWS = 3


class Verdict(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    NO_MEASURABLE_EFFECT = "no_measurable_effect"
    """The adapter's effect is too small against the noise to be judged."""
    NOT_CHECKED = "not_checked"
    """The measurement failed, or is switched off."""


@dataclass(frozen=True)
class Row:
    """The measurements of one row, over the tokens for which all four sources have a log-probability."""

    line: int
    text: str
    effect: list[float]
    answer: list[float]
    noise: list[float]
    places: int
    same_top: int
    """Places where peft and the engine, with the adapter, find the same token likeliest."""
    not_finite: int = 0
    """Tokens that are left out since a number overflowed."""
    file: str | None = None
    """The id of its file; None: a built-in row."""


@dataclass(frozen=True)
class Mismatch:
    """A prompt that has other tokens in the engine than in training."""

    line: int
    why: str
    file: str | None = None


@dataclass(frozen=True)
class WorstRow:
    line: int
    text: str
    mean_difference: float
    max_difference: float
    reason: str | None = None
    file: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Differences in nats; `effect`, `noise` and `residual` (answer - effect) are root mean squares."""

    verdict: Verdict
    reason: str
    rows: int
    tokens: int
    slope: float | None
    correlation: float | None
    effect: float
    noise: float
    residual: float
    mean_difference: float
    max_difference: float
    top1_agreement: float
    worst_rows: list[WorstRow]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def common(row: ReferenceRow, engine_base: Sequence[Logprobs], engine_adapted: Sequence[Logprobs]) -> Row:
    """The measurements of a row: its own tokens, and the likeliest in each place that all four sources have."""
    found = Row(row.line, row.text, [], [], [], len(row.base), 0, file=row.file)
    same_top = not_finite = 0
    for base, adapted, served, tuned in zip(row.base, row.adapted, engine_base, engine_adapted, strict=True):
        for token in base.keys() & adapted.keys() & served.keys() & tuned.keys():
            changes = (
                adapted[token] - base[token],
                tuned[token] - served[token],
                served[token] - base[token],
            )
            if not all(map(math.isfinite, changes)):
                not_finite += 1
                continue
            for values, value in zip((found.effect, found.answer, found.noise), changes, strict=True):
                values.append(value)
        same_top += max(adapted, key=adapted.__getitem__) == max(tuned, key=tuned.__getitem__)
    return replace(found, same_top=same_top, not_finite=not_finite)


def compare(rows: Sequence[Row], mismatches: Sequence[Mismatch]) -> Comparison:
    """The verdict over all rows. Raises ValueError where there is nothing to compare."""
    places = sum(row.places for row in rows)
    if not places:
        raise ValueError("there is no token to compare")
    effect = list(chain.from_iterable(row.effect for row in rows))
    answer = list(chain.from_iterable(row.answer for row in rows))
    residual = [a - e for a, e in zip(answer, effect, strict=True)]
    noise = _rms(chain.from_iterable(row.noise for row in rows))
    numbers: dict[str, Any] = {
        "rows": len(rows),
        "tokens": places,
        "slope": _slope(effect, answer, noise),
        "correlation": _correlation(effect, answer),
        "effect": _rms(effect),
        "noise": noise,
        "residual": _rms(residual),
        "mean_difference": _mean(map(abs, residual)),
        "max_difference": max(map(abs, residual), default=0.0),
        "top1_agreement": sum(row.same_top for row in rows) / places,
    }
    verdict, reason = _judge(numbers, mismatches, sum(row.not_finite for row in rows))
    worst = [] if verdict is Verdict.PASS else _worst(rows, mismatches)
    for name, value in numbers.items():
        numbers[name] = round(value, 6) if isinstance(value, float) else value
    return Comparison(verdict=verdict, reason=reason, worst_rows=worst, **numbers)


def _judge(numbers: dict[str, Any], mismatches: Sequence[Mismatch], not_finite: int) -> tuple[Verdict, str]:
    noise, effect, residual, slope = (numbers[key] for key in ("noise", "effect", "residual", "slope"))
    measured = (
        f"slope {_shown(slope)}, correlation {_shown(numbers['correlation'])}, effect {effect:.4f}, difference "
        f"{residual:.4f}, noise {noise:.4f} nats over {numbers['tokens']} tokens of {numbers['rows']} rows"
    )
    if mismatches:
        first = mismatches[0]
        return Verdict.FAIL, (
            f"No parity with training: {len(mismatches)} prompts have other tokens there; in {_place(first)} "
            f"{first.why}. Does the adapter need another chat template?"
        )
    if not_finite:
        return Verdict.FAIL, f"No parity with peft: numbers overflow at {not_finite} tokens ({measured})"
    if noise > LARGEST_NOISE:
        return Verdict.FAIL, (
            f"No parity with transformers: they differ even without the adapter, by {noise:.4f} nats, above "
            f"{LARGEST_NOISE}. Does the engine serve another base? ({measured})"
        )
    of_noise, of_effect = LARGEST_RESIDUAL
    allowed = of_noise * noise + of_effect * effect
    if residual > allowed:
        return Verdict.FAIL, (
            f"No parity with peft: what the adapter changes differs by {residual:.4f} nats, above {allowed:.4f} "
            f"({measured})"
        )
    if effect < SMALLEST_EFFECT * noise:
        return Verdict.NO_MEASURABLE_EFFECT, f"No measurable effect on these rows ({measured})"
    if slope is None or abs(slope - 1) > SLOPE_OFF:
        return Verdict.FAIL, f"No parity with peft: the slope is off by more than {SLOPE_OFF} ({measured})"
    return Verdict.PASS, f"Parity with peft: {measured}"


def _place(row: Mismatch) -> str:
    return f"line {row.line}" + (f" of {row.file}" if row.file else "")


def _worst(rows: Sequence[Row], mismatches: Sequence[Mismatch]) -> list[WorstRow]:
    """The rows whose prompts differ, then those with the largest differences."""
    why = {(mismatch.file, mismatch.line): mismatch.why for mismatch in reversed(mismatches)}
    found = []
    for row in rows:
        differences = [abs(a - e) for a, e in zip(row.answer, row.effect, strict=True)]
        mean, largest = _mean(differences), max(differences, default=0.0)
        reason = why.get((row.file, row.line))
        found.append(WorstRow(row.line, row.text, round(mean, 6), round(largest, 6), reason, row.file))
    found.sort(key=lambda row: (row.reason is None, -row.mean_difference))
    return found[:_WORST_ROWS]


def _slope(x: Sequence[float], y: Sequence[float], noise: float) -> float | None:
    """The slope of a line through the origin, since no change on one side is no change on the other.

    `x` also has rounding errors of about `noise`, which would flatten the line; they are subtracted (errors in
    variables: Fuller, Measurement Error Models, 1987). None where `x` has nothing else.
    """
    square = math.fsum(a * a - noise * noise for a in x)
    return math.fsum(a * b for a, b in zip(x, y, strict=True)) / square if square > 0 else None


def _correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    mean_x, mean_y = _mean(x), _mean(y)
    xx = math.fsum((a - mean_x) ** 2 for a in x)
    yy = math.fsum((b - mean_y) ** 2 for b in y)
    xy = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return xy / math.sqrt(xx * yy) if xx and yy else None


def _rms(values: Iterable[float]) -> float:
    return math.sqrt(_mean(value * value for value in values))


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found) if found else 0.0


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
