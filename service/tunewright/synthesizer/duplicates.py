"""Rows that are there already: the same ones, and those that are alike, found as cleanings find them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tunewright.rows.canonical import Row
from tunewright.rows.cleaning.hashes import HashSet
from tunewright.rows.cleaning.steps.duplicates import Alike
from tunewright.rows.cleaning.texts import key_of


@dataclass(frozen=True)
class Compared:
    """What of a row is compared, as a canonical row."""

    row: Row
    group: int = 0
    """Rows of one group are compared with each other."""


class Seen:
    """The rows that were seen."""

    def __init__(self, similarity: float | None) -> None:
        """Without a similarity only the same rows are found."""
        self._similarity = similarity
        self._groups: dict[int, tuple[HashSet, Alike | None]] = {}

    def has(self, compared: Compared, *, and_add: bool = False) -> Literal["same", "alike"] | None:
        """How a row that was added before is like this one; `and_add`: adds this one where none is."""
        found = self._groups.get(compared.group)
        if found is None:
            if not and_add:
                return None
            found = HashSet(), Alike(self._similarity) if self._similarity is not None else None
            self._groups[compared.group] = found
        (keys, alike), key = found, [key_of(compared.row)]
        if keys.has_any(key):
            return "same"
        if alike is not None and alike.has(compared.row, and_add=and_add):
            return "alike"
        if and_add:
            keys.add(key)
        return None
