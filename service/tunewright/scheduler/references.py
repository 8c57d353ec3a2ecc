"""The reference process of the parity check: at most one, since its base must fit in memory beside the rest.

It measures several adapters of one base in a row (`evaluate.parity`). A new scheduler finds the process of a killed one
by its record, and its results in their folders.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.config import JobOptions, child_environment
from tunewright.evaluate.folder import NO_ROOM, ParityFolder, ParitySpec
from tunewright.ids import path_name
from tunewright.registry.workspace import Workspace
from tunewright.scheduler.devices import Devices, visible_to
from tunewright.scheduler.fork_server import ForkServer
from tunewright.scheduler.processes import ChildProcess, last_line

_NAME = "the parity reference"


@dataclass(frozen=True)
class Ended:
    """A reference process that left adapters unmeasured."""

    unmeasured: Sequence[str]
    """Ids of adapters; the first is the one that it was measuring when it ended."""
    why: str | None
    """None where its end was not observed, so that no adapter is to blame."""
    no_room: bool
    """Whether it ended because the memory was too small."""


class References:
    """Starts and watches the reference process, and knows the folders of its results."""

    def __init__(
        self, jobs: JobOptions, workspace: Workspace, lifeline: int, devices: Devices, forks: ForkServer
    ) -> None:
        self._limit = jobs.step_timeout
        self._forks = forks
        self._lifeline = lifeline
        self._devices = devices
        self._root = workspace.tmp / "parity"
        self._record = self._root / "process.json"
        self._log = self._root / "reference.log"
        self._process = ChildProcess.adopt(self._record, log_file=self._log, lifeline=lifeline, name=_NAME)
        self._ids = [id for id in self.ids() if not self.is_measured(id)] if self._process else []
        self._device = self.folder(self._ids[0]).read_spec().base.device if self._ids else "cpu"
        devices.lend(self._device)

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def ids(self) -> list[str]:
        """Ids of the adapters that have a spec."""
        return sorted(path.parent.name for path in self._root.glob("*/spec.json"))

    def folder(self, id: str) -> ParityFolder:
        return ParityFolder(self._root / path_name(id))

    def is_measured(self, id: str) -> bool:
        return self.folder(id).reference_file.exists()

    def start(self, specs: Sequence[ParitySpec]) -> None:
        """Start measuring adapters of one base, on the borrowed device in their specs. Raises OSError; then the device
        was given back."""
        self._device = specs[0].base.device
        try:
            for spec in specs:
                self.folder(spec.adapter_id).write_spec(spec)
            self._ids = [spec.adapter_id for spec in specs]
            folders = (str(self.folder(id).path) for id in self._ids)
            self._process = ChildProcess.start(
                [sys.executable, "-m", "tunewright.evaluate.parity", *folders],
                record=self._record,
                log_file=self._log,
                environment=child_environment(visible_to(self._device)),
                lifeline=self._lifeline,
                name=_NAME,
                launch=self._forks.launch,
            )
        except OSError:
            self._devices.give_back(self._device)
            raise

    def watch(self) -> Ended | None:
        """Watch the process. None while it runs, and where it has measured everything."""
        if self._process is None:
            return None
        if self._process.is_alive():
            if self._process.silent_for(sum(map(self.is_measured, self._ids))) <= self._limit:
                return None
            self._process.abort(self._limit)
        how = self._process.exit()
        self.stop()
        unmeasured = [id for id in self._ids if not self.is_measured(id)]
        if not unmeasured:
            return None
        hung = how.silent_seconds is not None
        cause = f"no result within {self._limit:.0f} s" if hung else how.description
        why = f"the reference process ended with {cause}: {last_line(self._log)}."
        return Ended(unmeasured, why if hung or how.code is not None else None, how.code == NO_ROOM)

    def forget(self, id: str) -> None:
        """Remove the results of an adapter whose check is over."""
        shutil.rmtree(self.folder(id).path, ignore_errors=True)
        self._ids = [other for other in self._ids if other != id]
        if not self._ids:
            self.stop()
        if not self.ids() and self._process is None:
            shutil.rmtree(self._root, ignore_errors=True)

    def stop(self) -> None:
        """End the process, if it runs; unfinished measurements begin again at the next start."""
        if self._process is not None:
            self._process.end()
            self._process = None
        self._devices.give_back(self._device)
