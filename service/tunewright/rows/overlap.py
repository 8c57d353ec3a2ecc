"""Rows that several files share: copies between the files of a job, and rows that it is measured and trained on.

What is kept of a row is a hash of 8 bytes, as in reports (`rows.report.survey`).
"""

from __future__ import annotations

from array import array
from typing import BinaryIO

from tunewright.rows.canonical import Row
from tunewright.rows.formats import inspect
from tunewright.rows.reading import Reading
from tunewright.rows.report.survey import row_hash

MOST_ROWS = 5_000_000
"""Rows of each file that are looked at."""


def shared_rows(*arguments: BinaryIO | list[Reading]) -> list[tuple[int, int, int]]:
    """(one, other, rows): for each two files, by their numbers, how many rows of the other are in the one too.

    The arguments are files that are open at their start, and last a list with the reading of each
    (`apart.call_apart`).
    """
    import numpy as np  # the command line starts without it

    *files, readings = arguments
    assert isinstance(readings, list)
    hashes = [
        np.asarray(_hashes(file, reading), dtype=np.uint64)
        for file, reading in zip(files, readings, strict=True)
        if not isinstance(file, list)
    ]
    found = []
    for other in range(1, len(hashes)):
        for one in range(other):
            shared = int(np.isin(hashes[other], hashes[one]).sum())
            if shared:
                found.append((one, other, shared))
    return found


def _hashes(file: BinaryIO, reading: Reading) -> array[int]:
    """Those of the rows of the part that is read."""
    found = array("Q")

    def add(_place: int, row: Row) -> bool:
        found.append(row_hash(row))
        return len(found) < MOST_ROWS

    inspect(file, reading, on_row=add)
    return found
