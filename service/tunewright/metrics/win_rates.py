"""Whether a win rate is above a limit, while comparisons arrive one after another: with the first `fewest`, with twice
as many, and so on. Plain Python, since the gateway asks after each comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

from tunewright.metrics.verdicts import Verdict, compared_with_limit, words

Outcome = Literal["win", "tie", "loss"]
RISK = 0.05
"""That a rate at the limit is called above or below it at any of the looks: half of it at the first, a quarter at the
second, and so on."""


@dataclass(frozen=True)
class WinRate:
    """Comparisons of one model with another one."""

    verdict: Verdict
    wins: int
    ties: int
    losses: int
    value: float | None = None
    """Wins and half the ties, as a share."""
    low: float | None = None
    """The lower end of its interval, at the confidence of the look."""
    high: float | None = None

    @property
    def samples(self) -> int:
        return self.wins + self.ties + self.losses

    def told(self, least: float) -> str:
        """In words, with the numbers."""
        if self.value is None or self.low is None or self.high is None:
            return words(self.verdict)
        return (
            f"win rate {self.value:.1%} ({self.low:.1%} to {self.high:.1%}) in {self.samples} comparisons: {self.wins} "
            f"wins, {self.ties} ties, {self.losses} losses; min_win_rate is {least:.1%}"
        )


def win_rate(outcomes: Sequence[Outcome], least: float, fewest: int) -> WinRate:
    """The verdict of the first look that decides, on the comparisons that it has seen; while none does, all of them."""
    seen, risk = fewest, RISK / 2
    while len(outcomes) >= seen:
        found = _rate(outcomes[:seen], risk)
        verdict = compared_with_limit(found.value, found.low, found.high, least, is_least=True)
        if verdict is not Verdict.NOT_ENOUGH_DATA:
            return replace(found, verdict=verdict)
        seen, risk = seen * 2, risk / 2
    return _rate(outcomes, risk)


def _rate(outcomes: Sequence[Outcome], risk: float) -> WinRate:
    """With Wilson's interval, for which a tie is half a win and half a loss: it is wider than that of a mean with ties,
    which vary less than wins and losses."""
    wins, ties, losses = (outcomes.count(outcome) for outcome in ("win", "tie", "loss"))
    rows = len(outcomes)
    if not rows:
        return WinRate(Verdict.NOT_ENOUGH_DATA, 0, 0, 0)
    z = NormalDist().inv_cdf(1 - risk / 2)
    share = (wins + ties / 2) / rows
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return WinRate(Verdict.NOT_ENOUGH_DATA, wins, ties, losses, share, low, high)
