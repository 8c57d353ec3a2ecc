"""JSONL, and JSON arrays that are read row by row.

Both are read with Python's `json`, so that a row means the same in either. (ijson, which reads arrays as a stream,
replaces half surrogate pairs by question marks, and knows no rows that are faulty.)
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from tunewright.rows.containers.raw import Raw
from tunewright.rows.faults import LONG_NUMBER, LONGEST_ROW, NotJson, RowFault, check_encodable, parse_json

_CHUNK = 2**18
_BOM = b"\xef\xbb\xbf"
_SURROGATE, _SURROGATE_BYTES = (
    re.compile(r"\\ud[89a-f]", re.IGNORECASE),
    re.compile(rb"\\ud[89a-f]", re.IGNORECASE),
)
NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""Bytes that are no UTF-8, as `surrogateescape` decodes them."""
_SPACE = re.compile(r"\s*")


def too_long(limit: int) -> RowFault:
    return NotJson(f"longer than {limit // 2**20} MiB")


def is_line_of_json(head: bytes) -> bool:
    """Whether a text begins with a line that is JSON by itself, and has more lines."""
    first, _, rest = head.partition(b"\n")
    if not rest.strip() or len(first) > 4096:
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def line_rows(file: BinaryIO) -> Iterator[Raw]:
    """The rows of JSONL. Blank lines do not count as rows."""
    limit = LONGEST_ROW
    for number, line in enumerate(iter(lambda: file.readline(limit + 1), b""), 1):
        if len(line) > limit:
            yield Raw(number, len(line), too_long(limit))
            return
        if line.strip():
            yield Raw(number, len(line), _line(line))


def _line(line: bytes) -> object:
    try:
        row = parse_json(line.removeprefix(_BOM).decode())
        if _SURROGATE_BYTES.search(line):
            check_encodable(row)
    except UnicodeDecodeError:
        return NotJson("not UTF-8 text")
    except RowFault as fault:
        return fault
    return row


def array_rows(file: BinaryIO, start: re.Pattern[str]) -> Iterator[Raw]:
    """The rows of an array, which begins behind what `start` matches. Nothing behind a row that is not JSON is read:
    where the next one begins cannot be known."""
    array = _Array(file)
    number = 0
    try:
        array.skip(start)
        while array.next_is_row(is_first=number == 0):
            number += 1
            value, size = array.row()
            yield Raw(number, size, value)
    except RowFault as fault:
        yield Raw(max(number, 1), 0, fault)


class _Array:
    """A window of text, from the row that is read now to what was read of the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._text, self._at, self._is_whole = "", 0, False
        self._lines = 0
        self._constants: list[str] = []
        self._scan = json.JSONDecoder(parse_constant=self._constants.append).raw_decode

    def skip(self, start: re.Pattern[str]) -> None:
        while (found := start.match(self._text)) is None and self._more():
            pass
        assert found is not None, "it was recognised by this"
        self._at = found.end()

    def next_is_row(self, *, is_first: bool) -> bool:
        """Go to the next row; False at the end. Raises RowFault where neither is there."""
        character = self._peek()
        if character == "]":
            return False
        if is_first:
            return True
        if character != ",":
            what = f"{json.dumps(character)} where a comma was expected" if character else "the file ends"
            raise NotJson(f"not valid JSON behind this row ({what} in line {self._line()})")
        self._at += 1
        return True

    def row(self) -> tuple[object, int]:
        """The next row or its fault, and its size. Raises RowFault where it has no end."""
        self._peek()
        value, end = self._value()
        start, self._at = self._at, end
        size = end - start
        if self._constants:
            name = self._constants[0]
            self._constants.clear()
            return RowFault(f"{name} is not valid JSON"), size
        if size > LONGEST_ROW:
            return too_long(LONGEST_ROW), size
        if NOT_UTF8.search(self._text, start, end):
            return NotJson("not UTF-8 text"), size
        try:
            if _SURROGATE.search(self._text, start, end):
                check_encodable(value)
        except RowFault as fault:
            return fault, size
        return value, size

    def _value(self) -> tuple[object, int]:
        while True:
            try:
                return self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                self._constants.clear()
                if len(self._text) - self._at > LONGEST_ROW:
                    raise too_long(LONGEST_ROW) from None
                if not self._more():
                    raise NotJson(
                        f"not valid JSON ({error.msg} in line {self._lines + error.lineno}); the rows from here on "
                        "were not read"
                    ) from None
            except RecursionError:
                raise RowFault("nested too deeply; the rows from here on were not read") from None
            except ValueError:
                raise RowFault(f"{LONG_NUMBER}; the rows from here on were not read") from None

    def _peek(self) -> str:
        """The next character that is no white space; empty at the end of the file."""
        while True:
            found = _SPACE.match(self._text, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _more(self) -> bool:
        """Read on, twice as much as is kept, so that a long row is scanned a few times only. False at the end."""
        if self._is_whole:
            return False
        block = self._file.read(max(_CHUNK, len(self._text) - self._at))
        self._is_whole = not block
        self._lines += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :] + self._decode(block, self._is_whole), 0
        return True

    def _line(self) -> int:
        return self._lines + self._text.count("\n", 0, self._at) + 1
