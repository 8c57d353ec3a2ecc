"""Data files: their rows, in canonical form, and their check.

A file is JSONL, a JSON array, CSV or Parquet (`rows.containers`), in one of several formats of rows (`rows.shapes`),
both recognised by themselves. A file has rows of one format. Every fault is reported with its line or row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tunewright.rows.canonical import Row, RowKind, is_labelled
from tunewright.rows.containers import Container, open_container
from tunewright.rows.containers.raw import Raw
from tunewright.rows.faults import LONGEST_ROW, Fault, InvalidData, NotJson, RowFault, check_levels
from tunewright.rows.held_out import is_held_out, place_of
from tunewright.rows.reading import Reading
from tunewright.rows.shapes import Converted, DataFormat, convert

__all__ = [
    "DataFormat",
    "FileReport",
    "InvalidData",
    "Reading",
    "RowKind",
    "check_file",
    "inspect",
    "read_rows",
]
MOST_FAULTS = 10
_AS_IT_IS = Reading()


@dataclass
class FileReport:
    """The result of a check."""

    container: str | None = None
    """`jsonl`, `json`, `csv`, `parquet`, or one of the first three with `.gz`; None: none of these."""
    format: DataFormat | None = None
    kind: RowKind | None = None
    has_messages: bool = False
    """Whether a row has messages, which a chat template renders, rather than texts."""
    rows: int = 0
    """Rows that were read; all, where there is no fault."""
    faults: list[Fault] = field(default_factory=list)
    has_more_faults: bool = False
    """The check ended after `MOST_FAULTS` faults."""
    refusal: str | None = None
    """Why the file as a whole cannot be read."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Fields without a meaning, and how many rows have them."""
    held_out: int = 0
    """Rows that are held out, of the reading's share."""
    labels: set[bool] = field(default_factory=set)
    """Of labelled rows: the labels of those that are held out, or of all where the reading has no share."""
    nearest_place: float = 1.0
    """The smallest share that would hold out a row is above this."""

    def as_json(self) -> dict[str, Any]:
        """The report of a file that is read by itself, without what a job holds out."""
        return {
            "container": self.container,
            "format": self.format,
            "kind": self.kind,
            "rows": self.rows,
            "problem": self.problem,
            "faults": [{fault.unit: fault.place, "message": fault.message} for fault in self.faults],
            "has_more_faults": self.has_more_faults,
            "ignored_fields": list(self.ignored),
        }

    @property
    def problem(self) -> str | None:
        """All that is wrong, in one line."""
        if self.refusal is not None:
            return self.refusal
        more = " (and maybe more)" if self.has_more_faults else ""
        return "; ".join(map(str, self.faults)) + more if self.faults else None


class ReadRow(NamedTuple):
    """A row of a file: as it stands there, what it means, and where it comes from."""

    raw: Raw
    converted: Converted
    container: Container


def read_converted(
    path: Path, reading: Reading = _AS_IT_IS, *, with_all_columns: bool = False, skip: int = 0
) -> Iterator[ReadRow]:
    """The rows of a file; `with_all_columns`: also those of a table that have no meaning. The first `skip` of
    them are left out.

    Raises InvalidData at a row that has a fault: the file was not checked, or has changed.
    """
    with path.open("rb") as file:
        container = open_container(file, None if with_all_columns else reading.wanted_columns())
        for raw in islice(container.rows, skip, None):
            try:
                converted = _converted(raw.value, reading, container)
            except RowFault as fault:
                raise InvalidData(str(Fault(raw.place, str(fault), container.unit))) from None
            if reading.part == "all" or is_held_out(converted.row, reading.held_out_share) == (
                reading.part == "held_out"
            ):
                yield ReadRow(raw, converted, container)


def read_rows(path: Path, reading: Reading = _AS_IT_IS) -> Iterator[tuple[int, Row]]:
    """The canonical rows of a file, with their places (from 1): lines or, of a JSON array or Parquet, numbers.

    Raises InvalidData as `read_converted`.
    """
    for read in read_converted(path, reading):
        yield read.raw.place, read.converted.row


def check_file(path: Path, reading: Reading = _AS_IT_IS) -> FileReport:
    """Check the whole file. Raises InvalidData with up to ten faults, or where its content is no data that is read."""
    try:
        with path.open("rb") as file:
            report = inspect(file, reading)
    except OSError as error:
        raise InvalidData(f"the file cannot be read: {error.strerror}") from error
    if report.problem:
        raise InvalidData(report.problem)
    return report


def inspect(
    file: BinaryIO,
    reading: Reading = _AS_IT_IS,
    most_rows: int | None = None,
    on_row: Callable[[int, Row], bool] = lambda _place, _row: True,
    on_fields: Callable[[Row, Row], None] | None = None,
) -> FileReport:
    """Check a file that is open at its start, or its first `most_rows` rows. Raises nothing for what is in it.

    `on_row` gets the place and the canonical form of each row without a fault; where it returns False, the check ends.
    `on_fields` gets the canonical form and the fields that were read of the file.
    """
    report = FileReport()
    ignored: Counter[str] = Counter()
    try:
        container = open_container(file, reading.wanted_columns())
        report.container = container.name
        is_json = False
        for raw in container.rows:
            report.rows += 1
            try:
                converted = _converted(raw.value, reading, container)
                _note(report, converted, reading)
                ignored.update(converted.ignored)
                if on_fields is not None and isinstance(raw.value, dict):
                    on_fields(converted.row, raw.value)
                if not on_row(raw.place, converted.row):
                    break
            except RowFault as fault:
                is_json = is_json or not isinstance(fault, NotJson)
                report.faults.append(_told_once(Fault(raw.place, str(fault), container.unit), report.faults))
                report.has_more_faults = len(report.faults) >= MOST_FAULTS
                if report.has_more_faults or raw.size > LONGEST_ROW:
                    break
            if report.rows == most_rows:
                break
    except InvalidData as error:
        report.refusal = str(error)
    except RecursionError:
        report.refusal = "the file has a row that is nested too deeply"
    if report.rows == 0 and report.refusal is None:
        report.refusal = "the file is empty: it has no rows"
    report.ignored = dict(sorted(ignored.items()))
    return report


def _told_once(fault: Fault, earlier: list[Fault]) -> Fault:
    """The fault, or a reference to an earlier one with the same message."""
    same = next((one for one in earlier if one.message == fault.message), None)
    return fault if same is None else Fault(fault.place, f"the same as {same.unit} {same.place}", fault.unit)


def _converted(value: object, reading: Reading, container: Container) -> Converted:
    if isinstance(value, RowFault):
        raise value
    check_levels(value)
    try:
        return convert(value, reading, is_table=container.is_table)
    except RecursionError:
        raise RowFault("nested too deeply") from None


def _note(report: FileReport, converted: Converted, reading: Reading) -> None:
    """Raises RowFault where the row is of another format than those before."""
    if report.format is None:
        report.format, report.kind = converted.format, converted.kind
    elif (converted.format, converted.kind) != (report.format, report.kind):
        raise RowFault(
            f"this row has the format {_named(converted.format, converted.kind)}, the first one "
            f"{_named(report.format, report.kind)}; use one format in a file"
        )
    row = converted.row
    report.has_messages |= isinstance(row.get("messages", row.get("prompt")), list)
    is_measured = True
    if reading.held_out_share:
        place = place_of(row)
        report.nearest_place = min(report.nearest_place, place)
        is_measured = place < reading.held_out_share
        report.held_out += is_measured
    if is_measured and is_labelled(row):
        report.labels.add(row["label"])


def _named(format: DataFormat, kind: RowKind | None) -> str:
    return f"{format.value} ({kind.value} rows)" if kind else format.value
