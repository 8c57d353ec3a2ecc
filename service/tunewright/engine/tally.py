"""How often adapters were loaded, unloaded and evicted: counted by the engine worker, which alone does that, in a file
of the data folder that the api reads. It goes on counting where an earlier worker has ended."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from enum import StrEnum
from pathlib import Path

log = logging.getLogger("tunewright.engine")

Tallied = dict[str, dict[str, float]]
"""By engine and name of the number."""
LOAD_SECONDS = "load_seconds"


class Change(StrEnum):
    """What was done to an adapter in an engine."""

    LOADED = "loaded"
    LOAD_FAILED = "load_failed"
    UNLOADED = "unloaded"
    """Since nobody wants it any more."""
    EVICTED = "evicted"
    """To make room for another one."""


class Tally:
    """Used from one event loop of one process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers = read_tally(path)
        self._writes = asyncio.Lock()

    async def add(self, engine: str, change: Change, seconds: float = 0.0) -> None:
        """Count a change. `seconds`: what a load took. Never fails: a number is no reason to lose an adapter."""
        numbers = self._numbers.setdefault(engine, {})
        numbers[change] = numbers.get(change, 0) + 1
        if seconds:
            numbers[LOAD_SECONDS] = numbers.get(LOAD_SECONDS, 0.0) + seconds
        async with self._writes:
            try:
                await asyncio.to_thread(_replace, self._path, json.dumps(self._numbers))
            except OSError as error:  # a full disk: the next change writes all of them
                log.warning("the numbers of loaded adapters could not be written: %s", error)


def _replace(path: Path, text: str) -> None:
    """As `atomic.write_atomically`, without waiting for the disk: after a loss of power the numbers may begin anew."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def read_tally(path: Path) -> Tallied:
    """The content of the file; nothing where there is none, or it is damaged."""
    try:
        found = json.loads(path.read_text())
        return {
            str(engine): {str(name): float(number) for name, number in numbers.items()}
            for engine, numbers in found.items()
        }
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
