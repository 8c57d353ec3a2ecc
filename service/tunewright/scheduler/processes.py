"""A child process of the scheduler: started, adopted from an earlier scheduler, watched and ended.

Jobs, engines and the reference process of the parity check are all watched with this. What a silent process means, and
whether it is started again, is decided by the caller.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tunewright.log_files import CONTINUED, begin_anew, keep_small, parts_of_run, read
from tunewright.supervisor.process import Launch, ProcessGroup

_STACK_SECONDS = 2.0
"""Seconds that a hung process has to write its stack to its log."""


@dataclass(frozen=True)
class Exit:
    """How a process ended."""

    code: int | None
    """None where another process had started it: only its parent learns the code."""
    silent_seconds: float | None = None
    """Set where it was ended because it made no progress for so long."""

    @property
    def description(self) -> str:
        """The cause, for messages that say "ended with ..."."""
        if self.silent_seconds is not None:
            return f"no sign of progress for {self.silent_seconds:.0f} s"
        return describe_exit(self.code)


class ChildProcess:
    """A process group (`supervisor.process`) with its lifeline's title, its log, and the time of its last progress."""

    def __init__(self, group: ProcessGroup, log_file: Path, lifeline: int, title: str) -> None:
        self.group = group
        self._log_file = log_file
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
        descriptors: tuple[int, ...] = (),
        launch: Launch | None = None,
    ) -> Self:
        """Start `command` with its output in `log_file`: after what is there (`append`), or in its place.
        `descriptors` and `launch` are those of `ProcessGroup.start`.

        Raises OSError; then no process is left.
        """
        title = _title(name)
        if not append:
            begin_anew(log_file)
        with log_file.open("ab") as output:
            group = ProcessGroup.start(
                command,
                record_path=record,
                environment=environment,
                lifeline=lifeline,
                output=output,
                title=title,
                descriptors=descriptors,
                launch=launch,
            )
        return cls(group, log_file, lifeline, title)

    @classmethod
    def adopt(cls, record: Path, *, log_file: Path, lifeline: int, name: str) -> Self | None:
        """The recorded process, where it or its watcher is still alive."""
        group = ProcessGroup.adopt(record)
        return cls(group, log_file, lifeline, _title(name)) if group is not None else None

    @property
    def pid(self) -> int | None:
        return self.group.pid

    def is_alive(self) -> bool:
        """Whether the command runs. Starts a new watcher where the old one was killed, and rotates the log."""
        if not self.group.is_alive():
            return False
        self.group.keep_watched(self._lifeline, self._title)
        with suppress(OSError):  # a log that cannot be rotated now is rotated later
            keep_small(self._log_file)
        return True

    def silent_for(self, sign: object) -> float:
        """Seconds since `sign`, which differs after each step of progress, was seen to change. Measured by the
        monotonic clock, since the system's may be set."""
        if sign != self._sign:
            self._sign, self._sign_at = sign, time.monotonic()
        return time.monotonic() - self._sign_at

    def abort(self, silent_seconds: float) -> None:
        """Send SIGABRT to a process that hangs, and give it time to write its stack to its log."""
        self._hung_for = silent_seconds
        self.group.send(signal.SIGABRT)
        self.group.wait(_STACK_SECONDS)

    def terminate(self) -> None:
        """Ask the process to stop. Safe to repeat."""
        self.group.terminate()

    def exit(self) -> Exit:
        """How the process ended."""
        return Exit(self.group.exit_code, self._hung_for)

    def end(self) -> Exit:
        """Kill what is left of the process. Returns how it had ended before."""
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


def describe_exit(code: int | None) -> str:
    """An exit code as it stands in messages."""
    if code is None:
        return "an unknown exit code"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def out_of_memory_hint(how: str, advice: str) -> str:
    """Advice for a process that the system has probably killed for its memory; else empty."""
    if how != describe_exit(-signal.SIGKILL):
        return ""
    return f". The system mostly sends that signal when the machine's memory runs out: {advice}"


def last_line(log_file: Path) -> str:
    """The last line of a process's log, or a phrase that says that the log is empty."""
    lines = [line.strip() for line in read(parts_of_run(log_file), 20)]
    lines = [line for line in lines if line and line != CONTINUED]
    return lines[-1][:300] if lines else "its log is empty"


def _title(name: str) -> str:
    return f"tunewright: lifeline of {name}"
