"""What a report flags in rows: contents that a person should look at. Each flagger is one line in `FLAGGERS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from tunewright.rows.canonical import Row
from tunewright.rows.counts import MOST_LISTED


class Flagger(NamedTuple):
    """`find` gives what it found in a canonical row, a short text for each."""

    code: str
    message: str
    fix: str
    find: Callable[[Row], Iterable[str]]


FLAGGERS: tuple[Flagger, ...] = ()


@dataclass
class Flagged:
    """What one flagger has found in a file."""

    flagger: Flagger
    count: int = 0
    """Rows."""
    rows: dict[int, str] = field(default_factory=dict)
    """The first of them, and what was found."""

    def look(self, place: int, row: Row) -> None:
        found = list(self.flagger.find(row))
        if found:
            self.count += 1
            if len(self.rows) < MOST_LISTED:
                self.rows[place] = "; ".join(found)
