"""A child process of the scheduler: started, adopted from an earlier scheduler, watched and ended.

Jobs, the reference process of the parity check, and engines are all watched with this. What a silent process means, and
whether it is started again, is decided by those who watch.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tunewright.supervisor.process import ProcessGroup

_LAST_WORDS = 2.0
"""Seconds for a hung process to write its stack to its log."""


@dataclass(frozen=True)
class Exit:
    """How a process ended."""

    code: int | None
    """None where another process had started it: only its parent learns the code."""
    silent_seconds: float | None = None
    """Set where it was ended because it showed no progress for so long."""

    @property
    def words(self) -> str:
        if self.silent_seconds is not None:
            return f"no sign of progress for {self.silent_seconds:.0f} s"
        return exit_words(self.code)


class ChildProcess:
    """A process group (`supervisor.process`), the title of its lifeline, and how long it has shown no progress."""

    def __init__(self, group: ProcessGroup, lifeline: int, title: str) -> None:
        self.group = group
        self._lifeline = lifeline
        self._title = title
        self._sign: object = None
        self._sign_at = time.monotonic()
        self._hung_for: float | None = None

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        *,
        record: Path,
        log_file: Path,
        environment: Mapping[str, str],
        lifeline: int,
        name: str,
        append: bool = False,
    ) -> Self:
        """Start `command`; its output goes to `log_file`. Raises OSError, and then nothing runs."""
        title = _title(name)
        with log_file.open("ab" if append else "wb") as output:
            group = ProcessGroup.start(
                command,
                record_path=record,
                environment=environment,
                lifeline=lifeline,
                output=output,
                title=title,
            )
        return cls(group, lifeline, title)

    @classmethod
    def adopt(cls, record: Path, *, lifeline: int, name: str) -> Self | None:
        """The process on record, where it or its watcher still lives."""
        group = ProcessGroup.adopt(record)
        return cls(group, lifeline, _title(name)) if group is not None else None

    @property
    def pid(self) -> int | None:
        return self.group.pid

    def is_alive(self) -> bool:
        """Whether the command runs. Gives it a new watcher where the old one was killed."""
        if not self.group.is_alive():
            return False
        self.group.keep_watched(self._lifeline, self._title)
        return True

    def silent_for(self, sign: object) -> float:
        """Seconds since `sign`, which changes with each step of progress, was seen to change. By the monotonic clock:
        the system's may be set."""
        if sign != self._sign:
            self._sign, self._sign_at = sign, time.monotonic()
        return time.monotonic() - self._sign_at

    def abort(self, silent_seconds: float) -> None:
        """End a process that hangs, which first may write its stack to its log."""
        self._hung_for = silent_seconds
        self.group.send(signal.SIGABRT)
        self.group.wait(_LAST_WORDS)

    def terminate(self) -> None:
        """Ask it to stop; asking again does no harm."""
        self.group.terminate()

    def exit(self) -> Exit:
        """How it ended."""
        return Exit(self.group.exit_code, self._hung_for)

    def end(self) -> Exit:
        """Kill what is left of it; how it ended by itself, if it did."""
        how = self.exit()
        self.group.end()
        return how


def stop_all(processes: Sequence[ChildProcess], grace: float) -> None:
    """Ask all of them to stop, and wait for `grace` seconds in total."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + grace
    for process in processes:
        process.group.wait(max(0.0, deadline - time.monotonic()))


def exit_words(code: int | None) -> str:
    if code is None:
        return "an unknown exit code"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def out_of_memory_hint(how: str, advice: str) -> str:
    """What may be done where the system has probably killed the process for its memory; else empty."""
    if how != exit_words(-signal.SIGKILL):
        return ""
    return f". That signal mostly comes from the system, when the machine's memory runs out: {advice}"


def last_line(log_file: Path) -> str:
    """The last line of a process's log, or a phrase that says that there is none."""
    try:
        lines = log_file.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1][:300] if lines else "its log is empty"


def _title(name: str) -> str:
    return f"tunewright: lifeline of {name}"
