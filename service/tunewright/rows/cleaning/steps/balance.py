"""Groups of rows that are larger than others are sampled down. The only step that has to know all rows first."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field

from tunewright.rows.cleaning.step import InvalidSteps, Options, Record
from tunewright.rows.cleaning.texts import answers, key_of
from tunewright.wire import Text

if TYPE_CHECKING:
    import numpy as np

_MOST_GROUPS = 10_000
_SHOWN = 50
NONE = "(none)"


class BalanceOptions(Options):
    """The rows of each group that are kept are chosen by a hash of their content: with the same `seed` the same ones,
    whatever their order and whatever other rows there are."""

    type: Literal["balance"] = "balance"
    by: Text = Field(min_length=1, max_length=256)
    """What makes a group: `label`, `answer` (the assistant's last text), or the name of a column."""
    ratio: float = Field(1.0, ge=1, le=1_000_000)
    """A group may have so many times the rows of the smallest one."""
    seed: int = Field(0, ge=0, le=2**31 - 1)


class Group(BaseModel):
    """A group, and its rows before and after."""

    name: str
    rows: int
    kept: int = 0


class Balance:
    """Takes note of all rows, in their order (`survey`); then says which of them are kept."""

    name = "balance"

    def __init__(self, options: BalanceOptions) -> None:
        self._options = options
        self._numbers: dict[str, int] = {}
        self._group = array("H")
        self._place = array("Q")
        self.groups: list[Group] = []
        """The largest groups, after `kept`."""

    def survey(self, record: Record) -> None:
        """Raises InvalidSteps where there are more groups than a label can have."""
        name = self._group_of(record)
        number = self._numbers.setdefault(name, len(self._numbers))
        if number >= _MOST_GROUPS:
            raise InvalidSteps(
                f"balance by {self._options.by!r}: more than {_MOST_GROUPS} different values, which is no label; "
                "choose another column"
            )
        self._group.append(number)
        seeded = f"{self._options.seed}:{key_of(record.row)}".encode()
        self._place.append(int.from_bytes(hashlib.blake2b(seeded, digest_size=8).digest(), "big"))

    def kept(self) -> bytes:
        """1 for each surveyed row that is kept, else 0. Raises InvalidSteps where there is nothing to balance by."""
        import numpy as np  # those who only read the options do without it

        by = self._options.by
        if set(self._numbers) == {NONE}:
            raise InvalidSteps(
                f"balance by {by!r}: no row has it; name a column of the file, label or answer"
            )
        group, place = np.array(self._group), np.array(self._place)
        sizes = np.bincount(group, minlength=len(self._numbers))
        most = int(sizes.min() * self._options.ratio)
        order = np.lexsort((place, group))  # stable: of equal rows the first ones are kept
        rank = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        flags = np.zeros(len(group), dtype=np.uint8)
        flags[order[rank < most]] = 1
        names = {number: name for name, number in self._numbers.items()}
        self.groups = [
            Group(name=names[number], rows=int(sizes[number]), kept=min(int(sizes[number]), most))
            for number in np.argsort(-sizes, kind="stable")[:_SHOWN].tolist()
        ]
        return flags.tobytes()

    def saved(self) -> dict[str, np.ndarray]:
        """What it has taken note of, by names."""
        import numpy as np

        names = json.dumps(list(self._numbers)).encode()
        return {
            "names": np.frombuffer(names, dtype=np.uint8),
            "group": np.array(self._group),
            "place": np.array(self._place),
        }

    def restore(self, saved: Mapping[str, np.ndarray]) -> None:
        """Take note of what another one has."""
        self._numbers = {name: number for number, name in enumerate(json.loads(saved["names"].tobytes()))}
        self._group = array("H", saved["group"].tobytes())
        self._place = array("Q", saved["place"].tobytes())

    def _group_of(self, record: Record) -> str:
        by = self._options.by
        if by == "answer":
            value: object = next(iter(reversed(answers(record.row))), None)
        else:
            value = record.row.get(by) if by == "label" and by in record.row else record.columns.get(by)
        return group_name(value)


def group_name(value: object) -> str:
    """The group of rows with this label, answer or value of a column."""
    if value is None or value == "":
        return NONE
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.split())[:200].casefold()
