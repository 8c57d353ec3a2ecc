"""Whether two who judge the same pairs agree: Cohen's kappa (1960), as scikit-learn's `cohen_kappa_score` has it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def agreement(first: Sequence[str], second: Sequence[str]) -> float:
    """The share of the pairs that both judge alike; NaN where there are none."""
    if not first:
        return math.nan
    return sum(ours == theirs for ours, theirs in zip(first, second, strict=True)) / len(first)


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Agreement beyond that of chance: 1 for always, 0 for as often as by chance. NaN where chance alone agrees always:
    both have the same judgement of all."""
    observed = agreement(first, second)
    ours, theirs = Counter(first), Counter(second)
    expected = sum(ours[label] * theirs[label] for label in ours) / len(first) ** 2 if first else math.nan
    return (observed - expected) / (1 - expected) if expected < 1 else math.nan
