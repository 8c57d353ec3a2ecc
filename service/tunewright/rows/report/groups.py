"""How many rows of a file have each label, answer or source: what a file has much more of than of something else.

Groups are those of the cleaning's step `balance`, which samples large ones down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from tunewright.rows.canonical import Row, is_labelled
from tunewright.rows.cleaning.steps.balance import NONE, group_name
from tunewright.rows.cleaning.texts import answers
from tunewright.rows.report.models import Balance, GroupOfRows

MOST_VALUES = 50
"""More different values are no label."""
_ROWS_OF_A_VALUE = 5
"""On average: fewer are no label either."""
_SHOWN = 20
_MOST_COLUMNS = 50
_RESERVED = ("label", "answer")
"""What `balance` takes these names for, whatever columns there are."""
_LONGEST = 200


class Groups:
    """Takes note of each row; then says by what its rows are grouped."""

    def __init__(self, meant: Collection[str]) -> None:
        """`meant`: columns that have a meaning in a format, and so are no label of their own."""
        self._meant = {*meant, *_RESERVED}
        self._rows = 0
        self._counts: dict[str, Counter[str]] = {"label": Counter(), "answer": Counter()}
        self._too_many: set[str] = set()

    def add(self, row: Row, columns: Mapping[str, object]) -> None:
        """`row` is canonical, `columns` are the fields of the file."""
        self._rows += 1
        if is_labelled(row):
            self._count("label", row["label"])
        elif said := answers(row):
            self._count("answer", said[-1])
        for name, value in columns.items():
            if name not in self._meant and isinstance(value, str | bool | int):
                self._count(name, value)

    def _count(self, by: str, value: object) -> None:
        if by in self._too_many or (by not in self._counts and len(self._counts) >= _MOST_COLUMNS):
            return
        counts = self._counts.setdefault(by, Counter())
        if isinstance(value, str) and len(value) > _LONGEST:
            counts.clear()
            self._too_many.add(by)
            return
        counts[group_name(value)] += 1
        if len(counts) > MOST_VALUES:
            counts.clear()
            self._too_many.add(by)

    def found(self) -> list[Balance]:
        """By what rows are grouped, where there are at least two groups."""
        made = []
        for by, counts in self._counts.items():
            if missing := self._rows - counts.total():
                counts = counts + Counter({NONE: missing})
            if len(counts - Counter({NONE: counts[NONE]})) < 2 or self._rows < _ROWS_OF_A_VALUE * len(counts):
                continue
            groups = [GroupOfRows(name=name, rows=rows) for name, rows in counts.most_common()]
            made.append(
                Balance(by=by, groups=groups[:_SHOWN], ratio=round(groups[0].rows / groups[-1].rows, 2))
            )
        return made
