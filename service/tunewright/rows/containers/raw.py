"""A row as its container has it."""

from __future__ import annotations

from typing import NamedTuple


class Raw(NamedTuple):
    """A row as the container has it, or why it cannot be read."""

    place: int
    """From 1: its line, or where lines mean nothing, its number (`Container.unit`)."""
    size: int
    """Bytes or characters, about."""
    value: object
    """A RowFault where the row cannot be read."""
