"""Rows that another row of the file, or of the validation file, has already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tunewright.rows.canonical import Row
from tunewright.rows.cleaning.hashes import HashSet, band_hashes, bands_of
from tunewright.rows.cleaning.step import Options, Outcome, Record, Step, kept, removed
from tunewright.rows.cleaning.texts import key_of, said_and_called
from tunewright.rows.faults import InvalidData
from tunewright.rows.formats import read_rows
from tunewright.rows.reading import Reading

if TYPE_CHECKING:
    import numpy as np


class DuplicatesOptions(Options):
    """The first of rows with the same content is kept. The case of letters and white space do not count."""

    type: Literal["duplicates"] = "duplicates"


class Duplicates(Step):
    name = "duplicates"

    def __init__(self, options: DuplicatesOptions) -> None:
        self._seen = HashSet()

    def apply(self, record: Record) -> Outcome:
        key = [key_of(record.row)]
        if self._seen.has_any(key):
            return removed("duplicate")
        self._seen.add(key)
        return kept(record)

    def saved(self) -> dict[str, np.ndarray]:
        return self._seen.saved()

    def restore(self, saved: Mapping[str, np.ndarray]) -> None:
        self._seen.restore(saved)


class NearDuplicatesOptions(Options):
    """The first of rows that are alike is kept (MinHash over runs of three words). System messages do not count."""

    type: Literal["near_duplicates"] = "near_duplicates"
    similarity: float = Field(0.85, ge=0.5, le=0.99)
    """Jaccard similarity at which about half of the pairs are found; nearly all that are clearly above."""


class NearDuplicates(Step):
    name = "near_duplicates"

    def __init__(self, options: NearDuplicatesOptions) -> None:
        self._alike = Alike(options.similarity)

    def apply(self, record: Record) -> Outcome:
        if self._alike.has(record.row, and_add=True):
            return removed("near duplicate")
        return kept(record)

    def saved(self) -> dict[str, np.ndarray]:
        return self._alike.seen.saved()

    def restore(self, saved: Mapping[str, np.ndarray]) -> None:
        self._alike.seen.restore(saved)


class LeaksOptions(Options):
    """Rows that the validation file has too are removed: the same ones, and with `similarity` those that are alike."""

    type: Literal["leaks"] = "leaks"
    similarity: float | None = Field(0.85, ge=0.5, le=0.99)


class InvalidValidation(InvalidData):
    """The validation file cannot be used; the message names the lines."""


class Leaks(Step):
    name = "leaks"

    def __init__(
        self,
        options: LeaksOptions,
        validation: Path,
        reading: Reading,
        on_row: Callable[[], None] = lambda: None,
    ) -> None:
        """Raises InvalidValidation."""
        self._keys = HashSet()
        self._alike = Alike(options.similarity) if options.similarity is not None else None
        try:
            for _, row in read_rows(validation, reading):
                self._keys.add([key_of(row)])
                if self._alike is not None:
                    self._alike.has(row, and_add=True)
                on_row()
        except InvalidData as error:
            raise InvalidValidation(f"the validation file: {error}") from None

    def apply(self, record: Record) -> Outcome:
        if self._keys.has_any([key_of(record.row)]):
            return removed("in the validation file")
        if self._alike is not None and self._alike.has(record.row):
            return removed("alike in the validation file")
        return kept(record)


class Alike:
    """The rows that were seen, by the bands of their signatures."""

    def __init__(self, similarity: float) -> None:
        self._bands, self._rows = bands_of(similarity)
        self.seen = HashSet()

    def has(self, row: Row, *, and_add: bool = False) -> bool:
        """Whether a row that is alike was added before; `and_add`: adds this one where none was."""
        hashes = band_hashes(said_and_called(row), self._bands, self._rows)
        if self.seen.has_any(hashes):
            return True
        if and_add:
            self.seen.add(hashes)
        return False
