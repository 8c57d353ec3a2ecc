"""The containers of data files: JSONL, a JSON array, CSV and Parquet, the first three also gzipped.

A container is recognised by its content, not by its name. It gives rows one by one, so that memory does not depend on
the size of the file; a row has at most `faults.LONGEST_ROW` bytes. What a row means is not known here (`rows.shapes`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import BinaryIO

from tunewright.rows.containers import csv_text, json_text
from tunewright.rows.containers.compressed import Expanded
from tunewright.rows.containers.parquet import parquet_rows
from tunewright.rows.containers.raw import Raw
from tunewright.rows.faults import InvalidData

READ = "JSONL (one JSON object in each line), a JSON array of objects, CSV with a header, or Parquet"


@dataclass(frozen=True)
class Container:
    name: str
    """`jsonl`, `json`, `csv` or `parquet`, with `.gz` behind it where it is compressed."""
    rows: Iterator[Raw]
    unit: str = "line"
    """What `Raw.place` counts: `line` or `row`."""
    is_table: bool = False
    """Each row has all columns, and null or nothing where a row of JSON would leave the field out."""


_OBJECT = re.compile(r'\{\s*["}]')
"""How a line of JSONL begins, behind comments."""
_SIGNATURES = {
    b"%PDF-": "a PDF",
    b"PK\x03\x04": "a zip archive or an Office document (unpack it)",
    b"\x28\xb5\x2f\xfd": "compressed with zstd (use gzip)",
    b"BZh": "compressed with bzip2 (use gzip)",
    b"\xfd7zXZ": "compressed with xz (use gzip)",
    b"ARROW1": "an Arrow file (use Parquet)",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
"""The first bytes of formats that are uploaded by mistake."""
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_HEAD = 2**16
_WRAPPED = re.compile(rb'\s*\{\s*"data"\s*:\s*\[')
_BOM = b"\xef\xbb\xbf"


def open_container(file: BinaryIO, columns: Set[str] | None = None) -> Container:
    """The container in a file that is open at its start. Its rows can be read once.

    `columns`: those that are wanted of a table, where not all are. Raises InvalidData where it is none that is read.
    """
    head = file.read(len(_PARQUET))
    file.seek(0)
    if head == _PARQUET:
        return Container("parquet", parquet_rows(file, columns), unit="row", is_table=True)
    if not head.startswith(_GZIP):
        return _text(file)
    expanded = _text(Expanded(file))
    return Container(f"{expanded.name}.gz", expanded.rows, expanded.unit, expanded.is_table)


def _text(file: BinaryIO) -> Container:
    head = file.read(_HEAD)
    file.seek(0)
    for signature, name in {**_SIGNATURES, _GZIP: "compressed twice", _PARQUET: "Parquet in gzip"}.items():
        if head.startswith(signature):
            raise _refused(name)
    text = head.removeprefix(_BOM).lstrip()
    if text.startswith(b"[") and not json_text.is_line_of_json(text):
        return Container("json", json_text.array_rows(file, re.compile(r"\s*\[")), unit="row")
    if _WRAPPED.match(text):
        return Container(
            "json", json_text.array_rows(file, re.compile(_WRAPPED.pattern.decode())), unit="row"
        )
    first = next(iter(text.splitlines()), b"")
    if first.strip() == b"{":
        raise _refused("JSON with objects over several lines")
    if text.startswith((b"{", b"[")) or not text:
        return Container("jsonl", json_text.line_rows(file))
    is_commented = csv_text.has_line(text, _OBJECT)
    delimiter = None if is_commented else csv_text.delimiter_of(text, is_whole=len(head) < _HEAD)
    if delimiter is not None:
        return Container("csv", csv_text.csv_rows(file, delimiter), is_table=True)
    if b"\0" in head:
        raise _refused("a binary file")
    if is_commented or json_text.is_line_of_json(text) or (len(head) == _HEAD and b"\n" not in text):
        return Container("jsonl", json_text.line_rows(file))
    raise _refused("plain text, or a table without a header")


def _refused(name: str) -> InvalidData:
    return InvalidData(f"the file is {name}, which is not read: give {READ}")
