"""Cleans a file: reads it row by row, passes each row through the steps, and writes what is left.

Two passes: the first one writes the rows that are left beside the target; the second one, over these, leaves out what
`balance` does not keep. Neither holds rows in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from tunewright.atomic import sync_folder
from tunewright.rows.canonical import Row
from tunewright.rows.cleaning.counts import CleaningReport, StepCounts
from tunewright.rows.cleaning.options import check_steps, steps_of
from tunewright.rows.cleaning.step import Options, Outcome, Record, Step, removed
from tunewright.rows.cleaning.steps.balance import Balance, BalanceOptions
from tunewright.rows.faults import InvalidData, RowFault, check_encodable
from tunewright.rows.formats import read_converted
from tunewright.rows.reading import Reading
from tunewright.rows.shapes import convert

Progress = Callable[[int], None]
"""Called for each row, with the number of rows that were read: 0 as long as those of the validation file are."""
_ROUNDS = 5
"""A row that the editing steps still change after so many rounds (tags in tags in tags) is removed."""
_CANONICAL = Reading()


class NothingLeft(InvalidData):
    """The steps removed every row; `report` says which."""

    def __init__(self, report: CleaningReport) -> None:
        super().__init__(f"no row is left of {report.rows_before}: the steps remove all of them")
        self.report = report


def clean_file(
    source: Path,
    target: Path,
    steps: Sequence[Options],
    *,
    reading: Reading = _CANONICAL,
    validation: Path | None = None,
    progress: Progress = lambda _: None,
) -> CleaningReport:
    """Write the cleaned rows of `source` to `target` as JSONL, in their order; the file appears complete or not at all.

    Raises InvalidData where a row has a fault, NothingLeft, and ValueError for steps that do not fit (`check_steps`).
    """
    check_steps(steps, has_validation=validation is not None)
    cleaning = _Cleaning(steps, validation, reading, progress)
    first, second = (target.with_name(f".{target.name}.{part}") for part in ("cleaned", "balanced"))
    try:
        with first.open("wb") as file:
            for record in cleaning.passed(source):
                file.write(_line(record.row))
            _sync(file)
        written = first
        if cleaning.balance is not None and cleaning.report.rows_after:
            cleaning.sample(first, second)
            written = second
        if not cleaning.report.rows_after:
            raise NothingLeft(cleaning.report)
        os.replace(written, target)
    finally:
        first.unlink(missing_ok=True)
        second.unlink(missing_ok=True)
    sync_folder(target.parent)
    return cleaning.report


class _Cleaning:
    """The steps of one cleaning, and what they did."""

    def __init__(
        self, asked: Sequence[Options], validation: Path | None, reading: Reading, progress: Progress
    ) -> None:
        self._reading = reading
        self._progress = progress
        self._editing, self._judging = steps_of(asked, validation, reading, lambda: progress(0))
        options = next((step for step in asked if isinstance(step, BalanceOptions)), None)
        self.balance = Balance(options) if options else None
        self._counts = {step: StepCounts(step=step.name) for step in (*self._editing, *self._judging)}
        self._invalid = StepCounts(step="validity")
        self.report = CleaningReport(steps=list(self._counts.values()))

    def passed(self, source: Path) -> Iterator[Record]:
        """The rows that are left. Raises InvalidData."""
        for record in self._records(source):
            self.report.rows_before += 1
            self._progress(self.report.rows_before)
            try:
                left = self._through(record)
            except RecursionError:
                self._invalid.note(record, removed("nested too deeply"))
                continue
            if left is None:
                continue
            if self.balance is not None:
                self.balance.survey(left)
            self.report.rows_after += 1
            self.report.changed += left.row is not record.row
            yield left
        if self._invalid.removed:
            self.report.steps.append(self._invalid)

    def sample(self, cleaned: Path, target: Path) -> None:
        """Write the rows of `cleaned` that `balance` keeps."""
        assert self.balance is not None
        flags = self.balance.kept()
        counts = StepCounts(step=self.balance.name)
        with cleaned.open("rb") as source, target.open("wb") as file:
            for line, is_kept in zip(source, flags, strict=True):
                if is_kept:
                    file.write(line)
            _sync(file)
        counts.removed = flags.count(0)
        self.report.rows_after -= counts.removed
        self.report.groups = self.balance.groups
        self.report.steps.append(counts)

    def _records(self, source: Path) -> Iterator[Record]:
        first: tuple[str, str] | None = None
        for raw, converted, container in read_converted(
            source, self._reading, with_all_columns=self.balance is not None
        ):
            found = (converted.format.value, converted.kind.value)
            if first is None:
                first = found
                self.report.container, self.report.unit = container.name, container.unit
                self.report.format, self.report.kind = found
            elif found != first:
                raise InvalidData(
                    f"{container.unit} {raw.place}: a row of the format {found[0]} ({found[1]} rows), the first one "
                    f"has {first[0]} ({first[1]} rows); use one format in a file"
                )
            columns = raw.value if isinstance(raw.value, dict) else {}
            yield Record(raw.place, converted.kind, converted.row, columns)

    def _through(self, record: Record) -> Record | None:
        """The row as the steps leave it; None where it is removed."""
        edited = self._edited(record)
        if edited is None or (edited.row is not record.row and not self._is_valid(edited)):
            return None
        for step in self._judging:
            if self._apply(step, edited).row is None:
                return None
        return edited

    def _edited(self, record: Record) -> Record | None:
        """Repeated until nothing changes: what one step uncovers, an earlier one may have to change."""
        now = record
        for turn in range(_ROUNDS):
            before = now
            for step in self._editing:
                outcome = self._apply(step, now, counted=turn == 0)
                if outcome.row is None:
                    if turn:
                        self._counts[step].note(record, outcome)
                    return None
                now = now.with_row(outcome.row) if outcome.row is not now.row else now
            if now.row is before.row:
                return now
        self._invalid.note(record, removed("hidden in itself many times"))
        return None

    def _apply(self, step: Step, record: Record, *, counted: bool = True) -> Outcome:
        outcome = step.apply(record)
        if counted:
            self._counts[step].note(record, outcome)
        return outcome

    def _is_valid(self, record: Record) -> bool:
        """Whether an edited row is still one: its answer may be empty now."""
        try:
            is_valid = convert(record.row, _CANONICAL).kind is record.kind
            check_encodable(record.row)
        except RowFault:
            is_valid = False
        if not is_valid:
            self._invalid.note(record, removed("nothing is left to learn"))
        return is_valid


def _line(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
