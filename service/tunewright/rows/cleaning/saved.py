"""What a cleaning keeps of its first pass while it runs, so that another process can go on: the rows that are left, and
what the steps remember of them."""

from __future__ import annotations

import json
import os
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pydantic import BaseModel

from tunewright.atomic import sync_folder
from tunewright.rows.cleaning.counts import CleaningReport, StepCounts

if TYPE_CHECKING:
    import numpy as np

_EVERY = 20.0
"""Seconds between two savings."""
_SHARE = 20
"""A saving that takes long is followed by so many times its duration without one."""
_STATE = "state"


class Stopped(Exception):
    """The cleaning was asked to stop, and what it has done is saved."""


class State(BaseModel):
    """The state of the first pass between two rows. `report` has the number of rows that were read."""

    report: CleaningReport
    invalid: StepCounts
    written: int
    """Bytes of the file with the rows that are left."""


@dataclass(frozen=True)
class Saved:
    state: State
    arrays: dict[str, np.ndarray]
    """What the steps remember, by the names of `array_name`."""

    def fits(self, rows: BinaryIO) -> bool:
        """Whether the file has all that was written until then."""
        return os.fstat(rows.fileno()).st_size >= self.state.written

    def of(self, step: str) -> dict[str, np.ndarray]:
        """What a step remembers, by the names that it has given."""
        begin = array_name(step, "")
        return {
            name.removeprefix(begin): array for name, array in self.arrays.items() if name.startswith(begin)
        }


class Keeper:
    """Saves the state of a cleaning every now and then, in one file beside its target."""

    def __init__(self, is_stopped: Callable[[], bool] = lambda: False) -> None:
        self._is_stopped = is_stopped
        self._due = time.monotonic() + _EVERY

    def is_due(self) -> bool:
        return self._is_stopped() or time.monotonic() >= self._due

    def save(self, target: Path, rows: BinaryIO, state: State, arrays: Mapping[str, np.ndarray]) -> None:
        """Save the state, and `rows` before it. Raises Stopped where the cleaning was asked to stop."""
        import numpy as np

        began = time.monotonic()
        sync(rows)
        path = state_file(target)
        temporary = path.with_name(f"{path.name}.tmp")
        text = np.frombuffer(state.model_dump_json().encode(), dtype=np.uint8)
        with temporary.open("wb") as file:
            np.savez(file, **{**arrays, _STATE: text})  # type: ignore[arg-type]
            sync(file)
        os.replace(temporary, path)
        sync_folder(path.parent)
        now = time.monotonic()
        self._due = now + max(_EVERY, _SHARE * (now - began))
        if self._is_stopped():
            raise Stopped


def array_name(step: str, name: str) -> str:
    return f"{step}.{name}"


def state_file(target: Path) -> Path:
    return target.with_name(f".{target.name}.state.npz")


def load(target: Path) -> Saved | None:
    """What an earlier process has saved; None where there is nothing, or it is damaged."""
    import numpy as np

    try:
        with np.load(state_file(target), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        state = State.model_validate(json.loads(arrays.pop(_STATE).tobytes()))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return Saved(state, arrays)


def sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
