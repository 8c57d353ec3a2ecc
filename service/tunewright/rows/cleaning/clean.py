"""Cleans a file: reads it row by row, passes each row through the steps, and writes what is left.

Two passes: the first one writes the rows that are left beside the target; the second one, over these, leaves out what
`balance` does not keep. Neither holds rows in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tunewright.atomic import sync_folder
from tunewright.rows.canonical import Row
from tunewright.rows.cleaning.counts import CleaningReport, StepCounts
from tunewright.rows.cleaning.options import check_steps, steps_of
from tunewright.rows.cleaning.saved import Keeper, Saved, State, Stopped, array_name, load, state_file, sync
from tunewright.rows.cleaning.step import Options, Outcome, Record, Step, removed
from tunewright.rows.cleaning.steps.balance import Balance, BalanceOptions
from tunewright.rows.faults import InvalidData, RowFault, check_encodable
from tunewright.rows.formats import read_converted
from tunewright.rows.reading import Reading
from tunewright.rows.shapes import convert

if TYPE_CHECKING:
    import numpy as np

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
    keeper: Keeper | None = None,
) -> CleaningReport:
    """Write the cleaned rows of `source` to `target` as JSONL, in their order; the file appears complete or not at all.

    With a keeper, what is done is saved beside `target` from time to time, and a later call with the same arguments
    goes on from there; it may raise Stopped.

    Raises InvalidData where a row has a fault, NothingLeft, and ValueError for steps that do not fit (`check_steps`).
    """
    check_steps(steps, has_validation=validation is not None)
    cleaning = _Cleaning(steps, validation, reading, progress)
    first, second = (target.with_name(f".{target.name}.{part}") for part in ("cleaned", "balanced"))
    try:
        with first.open("ab") as file:
            saved = load(target) if keeper is not None else None
            cleaning.go_on(saved if saved is not None and saved.fits(file) else None, file)
            for record in cleaning.passed(source):
                if record is not None:
                    file.write(_line(record.row))
                elif keeper is not None and keeper.is_due():
                    keeper.save(target, file, cleaning.state(file), cleaning.arrays())
            sync(file)
        written = first
        if cleaning.balance is not None and cleaning.report.rows_after:
            cleaning.sample(first, second)
            written = second
        if not cleaning.report.rows_after:
            raise NothingLeft(cleaning.report)
        os.replace(written, target)
    except Stopped:
        raise
    except BaseException:
        _remove(first, second, state_file(target))
        raise
    _remove(first, second, state_file(target))
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

    def go_on(self, saved: Saved | None, rows: BinaryIO) -> None:
        """Begin where an earlier process has saved its state, or with the first row; `rows` becomes what was written
        until then."""
        rows.truncate(saved.state.written if saved else 0)
        if saved is None:
            return
        self.report, self._invalid = saved.state.report, saved.state.invalid
        self._counts = dict(zip(self._counts, self.report.steps, strict=True))
        for name, step in self._with_memory().items():
            step.restore(saved.of(name))

    def state(self, rows: BinaryIO) -> State:
        rows.flush()
        return State(report=self.report, invalid=self._invalid, written=os.fstat(rows.fileno()).st_size)

    def arrays(self) -> dict[str, np.ndarray]:
        """What the steps remember."""
        return {
            array_name(name, key): array
            for name, step in self._with_memory().items()
            for key, array in step.saved().items()
        }

    def _with_memory(self) -> dict[str, Step | Balance]:
        """The steps that may remember rows, by their names. Those of the validation file are read again."""
        return {step.name: step for step in (*self._judging, self.balance) if step is not None}

    def passed(self, source: Path) -> Iterator[Record | None]:
        """The rows that are left, and None between two rows of the source. Raises InvalidData."""
        for record in self._records(source):
            yield None
            self.report.rows_before += 1
            self._progress(self.report.rows_before)
            left = self._through(record)
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
            sync(file)
        counts.removed = flags.count(0)
        self.report.rows_after -= counts.removed
        self.report.groups = self.balance.groups
        self.report.steps.append(counts)

    def _records(self, source: Path) -> Iterator[Record]:
        first: tuple[str, str] | None = None
        if self.report.format is not None and self.report.kind is not None:
            first = (self.report.format, self.report.kind)
        for raw, converted, container in read_converted(
            source, self._reading, with_all_columns=self.balance is not None, skip=self.report.rows_before
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


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
