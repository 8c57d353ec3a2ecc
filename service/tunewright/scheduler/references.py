"""The reference process of the parity gate: at most one, since the machine must have room for its base beside all else.

It measures several adapters on one base one after another (`evaluate.parity`). What is here of a killed scheduler's is
found again: the process by its record, its results in their folders.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.config import Settings, child_environment
from tunewright.evaluate.folder import NO_ROOM, ParityFolder, ParitySpec
from tunewright.registry.workspace import Workspace
from tunewright.scheduler.reports import exit_words, last_line
from tunewright.supervisor.process import ProcessGroup

_TITLE = "tunewright: lifeline of the parity reference"


@dataclass(frozen=True)
class Ended:
    """What became of a process that left something unmeasured."""

    unmeasured: Sequence[str]
    """Ids of adapters; the first is the one over which it ended."""
    why: str | None
    """None: nobody saw it, so it is nobody's fault."""
    no_room: bool


class References:
    def __init__(self, settings: Settings, workspace: Workspace, lifeline: int) -> None:
        self._limit = settings.step_timeout
        self._lifeline = lifeline
        self._root = workspace.tmp / "parity"
        self._record = self._root / "process.json"
        self._log = self._root / "reference.log"
        self._group = ProcessGroup.adopt(self._record)
        self._ids = [id for id in self.ids() if not self.is_measured(id)] if self._group else []
        self._seen = (0, time.monotonic())

    @property
    def is_running(self) -> bool:
        return self._group is not None

    @property
    def device(self) -> str | None:
        """What the process that runs was given."""
        return self.folder(self._ids[0]).read_spec().base.device if self._group and self._ids else None

    def ids(self) -> list[str]:
        """Adapters of which there is a spec."""
        return sorted(path.parent.name for path in self._root.glob("*/spec.json"))

    def folder(self, id: str) -> ParityFolder:
        return ParityFolder(self._root / id)

    def is_measured(self, id: str) -> bool:
        return self.folder(id).reference_file.exists()

    def start(self, specs: Sequence[ParitySpec]) -> None:
        """Of one base."""
        device = specs[0].base.device
        for spec in specs:
            self.folder(spec.adapter_id).write_spec(spec)
        self._ids = [spec.adapter_id for spec in specs]
        with self._log.open("wb") as output:
            self._group = ProcessGroup.start(
                [sys.executable, "-m", "tunewright.evaluate.parity", *(str(self.folder(id).path) for id in self._ids)],
                record_path=self._record,
                environment=child_environment(
                    {"CUDA_VISIBLE_DEVICES": device.removeprefix("cuda:") if device != "cpu" else ""}
                ),
                lifeline=self._lifeline,
                output=output,
                title=_TITLE,
            )  # fmt: skip
        self._seen = (0, time.monotonic())

    def watch(self) -> Ended | None:
        """None while it runs, and where it did all it should."""
        if self._group is None:
            return None
        measured, now = sum(map(self.is_measured, self._ids)), time.monotonic()
        if measured != self._seen[0]:
            self._seen = (measured, now)
        hung = self._group.is_alive() and now - self._seen[1] > self._limit
        if self._group.is_alive() and not hung:
            self._group.keep_watched(self._lifeline, _TITLE)
            return None
        code = self._group.exit_code
        self.stop()
        unmeasured = [id for id in self._ids if not self.is_measured(id)]
        if not unmeasured:
            return None
        how = f"no result within {self._limit:.0f} s" if hung else exit_words(code)
        why = f"the reference process ended with {how}: {last_line(self._log)}."
        return Ended(unmeasured, why if hung or code is not None else None, code == NO_ROOM)

    def forget(self, id: str) -> None:
        """Its verdict is there, or nobody waits for it any more."""
        shutil.rmtree(self.folder(id).path, ignore_errors=True)
        self._ids = [other for other in self._ids if other != id]
        if not self._ids:
            self.stop()
        if not self.ids() and self._group is None:
            shutil.rmtree(self._root, ignore_errors=True)

    def stop(self) -> None:
        """What runs begins again at the next start."""
        if self._group is not None:
            self._group.end()
            self._group = None
