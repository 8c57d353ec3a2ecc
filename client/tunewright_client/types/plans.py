"""The plan of a job: what it would need, before it is created. Memory in bytes, times in seconds."""

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from .base import Wire
from .jobs import CostRange

_GIB = 2**30


class PlannedMethod(Wire):
    """What a method needs. `memory` is by component, at the peak; `total` is their sum."""

    type: str
    trainable_parameters: int
    memory: dict[str, int]
    fits: bool
    seconds: dict[str, Any] | None = None
    cost: CostRange | None = None


class PlannedOption(Wire):
    """A hyperparameter's value, and why."""

    name: str
    value: Any
    reason: str
    source: str


class PlannedRows(Wire):
    """What an epoch has of a training file, by its weight."""

    file: str
    weight: float
    rows: int
    examples: int
    tokens: int


class PlanChange(Wire):
    """The smallest change that makes a job fit; `options` go into `tuning`."""

    change: str
    options: dict[str, Any]


class PlanWarning(Wire):
    """An option that rarely does what was meant."""

    code: str
    message: str


class Plan(Wire):
    """What a job would need, and what is advised. `print(plan)` shows it as tables.

    - counted_rows: where not all rows were tokenized for it: tokens, steps and times are estimated from these
    - available: bytes of one device that the job may use
    - type: the method of steps, options, fits and change
    - advised: the method that is advised, and `why`
    - change: the smallest change that makes it fit, or None
    """

    model: str
    machine: str
    devices: int
    available: int
    parameters: int
    rows: int
    counted_rows: int | None = None
    tokens: int
    files: list[PlannedRows] = Field(default_factory=list)
    steps: int
    type: str
    advised: str
    why: str
    methods: list[PlannedMethod]
    options: list[PlannedOption]
    fits: bool
    change: PlanChange | None = None
    sharding: str | None = None
    warnings: list[PlanWarning] = Field(default_factory=list)

    def __str__(self) -> str:
        components = [name for name in self.methods[0].memory if name != "total"] if self.methods else []
        lines = [
            f"{self.model}: {self.parameters:,} parameters; {self.rows} rows, {self.tokens:,} tokens an epoch, "
            f"{self.steps} steps",
            f"{self.devices} x {self.machine}, {_gib(self.available)} GiB of each available",
            f"advised: {self.advised} ({self.why})",
            f"{self.type} fits: {'yes' if self.fits else 'no'}",
        ]
        if self.counted_rows is not None:
            lines.insert(1, f"estimated from the first {self.counted_rows} rows")
        if len(self.files) > 1:
            lines += [
                f"{one.file} (weight {one.weight:g}): {one.rows} rows, {one.tokens:,} tokens an epoch"
                for one in self.files
            ]
        if self.change is not None:
            lines.append(f"to make it fit: {self.change.change}")
        elif self.sharding is not None:
            lines.append(f"to make it fit: {self.sharding}")
        memory = [["GiB", "fits", "total", *components]]
        for method in self.methods:
            numbers = [_gib(method.memory.get(name, 0)) for name in ("total", *components)]
            memory.append([method.type, "yes" if method.fits else "no", *numbers])
        costs = [f"{method.type}: {method.cost}" for method in self.methods if method.cost is not None]
        options = [[option.name, str(option.value), option.reason] for option in self.options]
        lines += ["", *_aligned(memory), *costs, "", *_aligned(options)]
        lines += [f"warning: {warning.message}" for warning in self.warnings]
        return "\n".join(lines)


def _gib(count: int) -> str:
    return f"{count / _GIB:.2f}"


def _aligned(rows: list[list[str]]) -> Iterable[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
