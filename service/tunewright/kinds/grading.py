"""Whether the rows of a file have what the grader of a job refers to; read in a process with limits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import BinaryIO

from tunewright.apart import CutOff, OutOfMemory, call_apart
from tunewright.graders.models import AnyGrader, item_references
from tunewright.graders.templates import Reference, UnknownVariable, looked_up
from tunewright.rows.canonical import Row, is_graded
from tunewright.rows.formats import inspect
from tunewright.rows.reading import Reading

_SECONDS, _BYTES_PER_SECOND = 60, 2**19
"""As `kinds.data`."""


def missing_item(
    path: Path,
    reading: Reading,
    grader: AnyGrader,
    most_rows: int | None = None,
    *,
    known: Collection[str] = (),
) -> str | None:
    """The first row, of `most_rows` or of all, that lacks what the grader refers to, in words; None where none does.
    `known`: what the job adds to each row. Raises OSError."""
    references = [one for one in dict.fromkeys(item_references(grader)) if one.keys[0] not in known]
    if not references:
        return None
    seconds = _SECONDS + path.stat().st_size // _BYTES_PER_SECOND
    with path.open("rb") as file:
        try:
            return call_apart(_first_missing, [file], reading, references, most_rows, seconds=seconds)
        except (CutOff, OutOfMemory) as error:
            return f"the items of its rows could not be read: {error}"


def _first_missing(
    file: BinaryIO, reading: Reading, references: Sequence[Reference], most_rows: int | None
) -> str | None:
    found: list[tuple[int, str]] = []

    def look(place: int, row: Row) -> bool:
        for reference in references:
            try:
                if is_graded(row):
                    looked_up(reference, row["item"], reference.keys)
            except UnknownVariable:
                found.append((place, str(reference)))
                return False
        return True

    report = inspect(file, reading, most_rows, look)
    if not found:
        return None
    (place, name), unit = found[0], "row" if report.container in ("json", "parquet") else "line"
    return f"{unit} {place} has no {name}, which the grader refers to"
