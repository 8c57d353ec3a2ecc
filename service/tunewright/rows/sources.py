"""Rows of several files of a job in their shares: checks and exports look at what the job has learnt from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict

from tunewright.rows.canonical import Row
from tunewright.rows.reading import Reading

Item = TypeVar("Item")


class Source(BaseModel):
    """A data file, and how many of the rows are from it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    """Its path, of which the last component is its id."""
    reading: Reading = Reading()
    share: float = 1.0
    """In proportion to the shares of the other files."""

    @property
    def id(self) -> str:
        return Path(self.file).name


class SourceRow(NamedTuple):
    """A row and where it stands."""

    file: str | None
    """The id of its file; None: a built-in row."""
    line: int
    row: Row


def in_shares(files: Sequence[Iterator[Item]], shares: Sequence[float]) -> Iterator[Item]:
    """The items of all files, each file in its order, so that the first n have about its share of each for every n.

    The file with the fewest items for its share has the next turn (the divisor method of Adams, which gives each one
    item before any has two). A file that has ended leaves its turns to the others.
    """
    taken = dict.fromkeys(range(len(files)), 0)
    while taken:
        at = min(taken, key=lambda number: (taken[number] / shares[number], -shares[number], number))
        try:
            item = next(files[at])
        except StopIteration:
            del taken[at]
            continue
        taken[at] += 1
        yield item
