"""What a step of a cleaning is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict

from tunewright.rows.canonical import Row, RowKind
from tunewright.rows.faults import InvalidData
from tunewright.wire import Exact

if TYPE_CHECKING:
    import numpy as np


class InvalidSteps(InvalidData):
    """A step cannot be used as it was asked for; the message says which."""


class Options(Exact):
    """The parameters of a step."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Record:
    """A row on its way through the steps."""

    place: int
    """Its line, or its number, in the file that is cleaned."""
    kind: RowKind
    row: Row
    """Its canonical form, as the steps before left it."""
    columns: Row = field(default_factory=dict)
    """The row as the file has it."""

    def with_row(self, row: Row) -> Record:
        return replace(self, row=row)


@dataclass(frozen=True)
class Outcome:
    """What a step makes of a row."""

    row: Row | None
    """None where it is removed."""
    reasons: tuple[str, ...] = ()
    """What was found, in a word or two each: the step's counts have a line for each. Empty: nothing was found."""


class Step(ABC):
    """One step. It sees the rows in their order, each once, as the steps before it left them."""

    name: str
    """Its `type` in requests."""

    @abstractmethod
    def apply(self, record: Record) -> Outcome:
        """Keep, change or remove a row. The same rows in the same order give the same outcomes."""

    def saved(self) -> dict[str, np.ndarray]:
        """What it remembers of the rows that it has seen, by names."""
        return {}

    def restore(self, saved: Mapping[str, np.ndarray]) -> None:
        """Remember what another process has saved."""
        return None


def kept(record: Record, *reasons: str) -> Outcome:
    return Outcome(record.row, reasons)


def removed(*reasons: str) -> Outcome:
    return Outcome(None, reasons)


def acted(action: str, record: Record, changed: Any, reasons: tuple[str, ...]) -> Outcome:
    """What steps with an `action` do with a row in which they found something: `changed()` is the row without it."""
    if not reasons or action == "flag":
        return kept(record, *reasons)
    if action == "remove":
        return removed(*reasons)
    return Outcome(changed(), reasons)
