"""What a file has that needs no model: its rows, turns, lengths in characters, exact duplicates, flags.

One pass over the rows. What is kept of a row are 16 bytes, so that the memory is bounded by `_MOST_ROWS`.
"""

from __future__ import annotations

import json
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from tunewright.rows.canonical import Row, is_preference, text_hash
from tunewright.rows.counts import MOST_LISTED
from tunewright.rows.formats import FileReport, inspect
from tunewright.rows.reading import Reading
from tunewright.rows.report.flags import Flagged, Flagger
from tunewright.rows.report.flags import flaggers as standard_flaggers
from tunewright.rows.report.groups import Groups
from tunewright.rows.report.models import Balance, Duplicates, Turns
from tunewright.rows.report.pairs import Pairs

_MOST_ROWS = 5_000_000
"""Rows that are read: 80 MB of hashes and lines, and as much again while they are sorted."""


@dataclass
class Survey:
    """What was found. Everything but `report` is about the rows without a fault."""

    report: FileReport
    is_complete: bool
    turns: Turns | None
    characters: dict[int, int]
    """Number of rows of each length, in characters of their texts."""
    duplicates: Duplicates
    flagged: list[Flagged]
    pairs: Pairs | None = None
    """Of preference rows."""
    balance: list[Balance] = field(default_factory=list)


def survey(
    file: BinaryIO,
    reading: Reading,
    seconds: float,
    *,
    flaggers: Sequence[Flagger] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Survey:
    """Read a file that is open at its start, for up to so many seconds. Raises nothing for what is in it."""
    rows = _Rows(standard_flaggers() if flaggers is None else flaggers, clock, clock() + seconds)
    groups = Groups(reading.wanted_columns())
    report = inspect(file, reading, on_row=rows.add, on_fields=groups.add)
    return Survey(
        report,
        not rows.was_stopped and not report.has_more_faults,
        rows.turns(),
        dict(rows.characters),
        duplicates(rows.hashes, rows.places),
        [one for one in rows.flagged if one.count],
        rows.pairs,
        groups.found(),
    )


class _Rows:
    def __init__(self, flaggers: Sequence[Flagger], clock: Callable[[], float], end: float) -> None:
        self._clock, self._end = clock, end
        self.was_stopped = False
        self.characters: Counter[int] = Counter()
        self.hashes, self.places = array("Q"), array("Q")
        self._flaggers = flaggers
        self.flagged = [Flagged(one.code, one.message, one.fix) for one in flaggers]
        self._roles: Counter[str] = Counter()
        self._talks = self._most = 0
        self.pairs: Pairs | None = None

    def add(self, place: int, row: Row) -> bool:
        """False where this was the last row that is read."""
        self.characters[characters(row)] += 1
        self.hashes.append(row_hash(row))
        self.places.append(place)
        if messages := row.get("messages"):
            self._talks += 1
            self._most = max(self._most, len(messages))
            self._roles.update(message["role"] for message in messages)
        if is_preference(row):
            self.pairs = self.pairs or Pairs()
            self.pairs.add(place, row, characters(row["chosen"]), characters(row["rejected"]))
        for flagger, flagged in zip(self._flaggers, self.flagged, strict=True):
            if found := list(flagger.find(row)):
                flagged.add(place, found)
        self.was_stopped = len(self.places) >= _MOST_ROWS or self._clock() > self._end
        return not self.was_stopped

    def turns(self) -> Turns | None:
        if not self._talks:
            return None
        messages = self._roles.total()
        return Turns(
            messages=messages,
            mean=round(messages / self._talks, 2),
            most=self._most,
            roles=dict(self._roles.most_common()),
        )


def characters(value: Any) -> int:
    """Characters of all texts in a row, without the names of its fields and roles."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        value = [text for name, text in value.items() if name != "role"]
    elif not isinstance(value, list):
        return 0
    return sum(map(characters, value))


def row_hash(row: Row) -> int:
    """64 bits. Of five million different rows two have the same with a probability of one in a million."""
    return text_hash(json.dumps(row, sort_keys=True, ensure_ascii=False))


def duplicates(hashes: Sequence[int], places: Sequence[int]) -> Duplicates:
    """Of rows with these hashes, at these places in ascending order."""
    import numpy as np  # the command line starts without it

    all_hashes = np.asarray(hashes, dtype=np.uint64)
    order = np.argsort(all_hashes, kind="stable")
    is_same = np.diff(all_hashes[order]) == 0
    begins = np.flatnonzero(np.diff(is_same.astype(np.int8), prepend=0) == 1)
    first = sorted(begins.tolist(), key=lambda begin: int(order[begin]))[:MOST_LISTED]
    groups = []
    for begin in first:
        end = begin + 1
        while end < len(is_same) and is_same[end] and end - begin < MOST_LISTED - 1:
            end += 1
        groups.append([places[index] for index in order[begin : end + 1].tolist()])
    return Duplicates(copies=int(is_same.sum()), groups=groups)
