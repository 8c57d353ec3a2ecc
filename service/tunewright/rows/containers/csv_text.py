"""CSV with a header: comma, semicolon or tab, quotes as in RFC 4180."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from tunewright.rows.containers.json_text import NOT_UTF8, too_long
from tunewright.rows.containers.raw import Raw
from tunewright.rows.faults import LONGEST_ROW, RowFault, listed

_DELIMITERS = (",", ";", "\t")
_LONGEST_NAME = 64
_OLD_LINE_ENDS = "lines end with CR alone, or one is outside quotes: end them with LF or CRLF"
_SINGLE = {"text", "messages", "conversations"}
"""Headers of one column."""


def delimiter_of(head: bytes, *, is_whole: bool) -> str | None:
    """The delimiter of a table whose text begins so; None where it does not begin with a header.

    A header has names, each once, and the row behind it, where all of it is in the head, has as many cells.
    """
    text = head.decode("utf-8", "surrogateescape")
    for delimiter in sorted(_DELIMITERS, key=lambda one: -text.partition("\n")[0].count(one)):
        try:
            table = csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, strict=True)
            header = next(table)
            second = next((row for row in table if row), None)
        except (csv.Error, StopIteration):
            second, header = None, _first_line(text, delimiter)
        names = [name.strip() for name in header]
        if not all(0 < len(name) <= _LONGEST_NAME for name in names) or len(set(names)) < len(names):
            continue
        if len(names) == 1 and names[0] not in _SINGLE:
            continue
        if second is None or len(second) == len(names) or not is_whole:
            return delimiter
    return None


def has_line(head: bytes, pattern: re.Pattern[str]) -> bool:
    """Whether a line begins so that is not within the quotes of a table's cell."""
    lines = head.decode("utf-8", "surrogateescape").splitlines(keepends=True)
    table = csv.reader(lines)
    try:
        while True:
            begin = table.line_num
            next(table)
            if pattern.match(lines[begin]):
                return True
    except StopIteration:
        return False
    except csv.Error:
        return any(map(pattern.match, lines))


def _first_line(text: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([text.partition("\n")[0]], delimiter=delimiter, strict=True))
    except (csv.Error, StopIteration):
        return []


def csv_rows(file: BinaryIO, delimiter: str) -> Iterator[Raw]:
    """The rows, as objects with the header's names; `place` is the line in which a row begins."""
    csv.field_size_limit(LONGEST_ROW)  # of the whole process; Python's own is 128 KiB
    lines = _Lines(file)
    table = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        lines.size, place = 0, table.line_num + 1
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            why = _OLD_LINE_ENDS if "new-line character" in str(error) else str(error)
            yield Raw(place, lines.size, RowFault(f"not valid CSV ({why})"))
            if names is None:
                return
            continue
        except RowFault as fault:
            yield Raw(place, lines.size, fault)
            return
        if names is None:
            names = [name.strip() for name in cells]
        elif cells:
            yield Raw(place, lines.size, _row(names, cells))


def _row(names: list[str], cells: list[str]) -> object:
    if any(NOT_UTF8.search(cell) for cell in cells):
        return RowFault("not UTF-8 text")
    if len(cells) != len(names):
        return RowFault(f"has {len(cells)} cells, and the header {len(names)} ({listed(names)})")
    return dict(zip(names, cells, strict=True))


class _Lines:
    """The lines of a file, as long as those of one row are not too long together."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._is_first = True
        self.size = 0
        """Bytes of the row that is read now."""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(LONGEST_ROW + 1)
        if not line:
            raise StopIteration
        self.size += len(line)
        if self.size > LONGEST_ROW:
            raise too_long(LONGEST_ROW)
        if self._is_first:
            self._is_first, line = False, line.removeprefix(b"\xef\xbb\xbf")
        return line.decode("utf-8", "surrogateescape")
