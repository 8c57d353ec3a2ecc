"""What the pairs of a preference file have that needs no model: how long their answers are, and which are the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tunewright.rows.canonical import Row
from tunewright.rows.counts import MOST_LISTED
from tunewright.rows.report.lengths import described
from tunewright.rows.report.models import PairLengths


@dataclass
class Pairs:
    """Counts of the pairs that were looked at; lengths in characters."""

    chosen: Counter[int] = field(default_factory=Counter)
    rejected: Counter[int] = field(default_factory=Counter)
    chosen_longer: int = 0
    identical: int = 0
    first_identical: list[int] = field(default_factory=list)
    """The places of the first ones."""

    def add(self, place: int, row: Row, chosen: int, rejected: int) -> None:
        """Add a row, whose answers have so many characters."""
        self.chosen[chosen] += 1
        self.rejected[rejected] += 1
        self.chosen_longer += chosen > rejected
        if row["chosen"] == row["rejected"]:
            self.identical += 1
            if len(self.first_identical) < MOST_LISTED:
                self.first_identical.append(place)

    def described(self) -> PairLengths:
        return PairLengths(
            chosen=described(self.chosen, "characters"),
            rejected=described(self.rejected, "characters"),
            chosen_longer=self.chosen_longer,
            identical=self.identical,
        )
