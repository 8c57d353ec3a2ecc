"""A wrapper for child processes: a process group with a lifeline, whatever command runs in it.

A group is led by a tiny watcher, `sh` blocked reading the lifeline: a pipe whose only write end the supervisor
holds. When the supervisor dies, however it dies, the read returns and the watcher kills the whole group, and so
vLLM's EngineCore too, which ignores its parent's death (vllm #55510). A parent-death signal would not do: it fires
when the spawning thread ends and does not reach grandchildren.

The watcher starts before the command, and its id is recorded before the command exists. So the group's id stays
valid for as long as the watcher lives, and after a crash the record is enough to end the group or to adopt it: no
command ever runs without being on record.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import IO, Protocol, Self

LIFELINE_VARIABLE = "TUNEWRIGHT_LIFELINE_FD"


@cache
def _boot_id() -> str:
    """The kernel's random id of this boot; empty where it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class ProcessId:
    """A unique identification of a process while the system runs: ids are reused, but not with the same start time
    (clock ticks since boot)."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Self:
        """The identification of a running process. Raises ProcessLookupError where there is none."""
        stat = _stat(pid)
        if stat is None:
            raise ProcessLookupError(pid)
        return cls(pid, int(stat[19]))

    def is_alive(self) -> bool:
        """Whether the process runs. A zombie does not."""
        stat = _stat(self.pid)
        return stat is not None and int(stat[19]) == self.started and stat[0] not in ("Z", "X")

    def is_stopped(self) -> bool:
        """Whether a signal or a debugger has stopped it."""
        stat = _stat(self.pid)
        return stat is not None and int(stat[19]) == self.started and stat[0] in ("T", "t")

    def holds_its_id(self) -> bool:
        """Whether the process is alive or a zombie, so that the id cannot be another process's."""
        stat = _stat(self.pid)
        return stat is not None and int(stat[19]) == self.started


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on (proc(5): field 3 is index 0, the start time index 19)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()


@dataclass(frozen=True)
class GroupRecord:
    """The record of a group, with which another process can adopt or end it."""

    group: int
    """The process group's id, which is its first watcher's."""
    watcher: ProcessId
    command: ProcessId | None
    boot: str = field(default_factory=_boot_id)
    """The boot of the system (random) in which these processes run: after another one, the same ids and start times
    may be those of any process."""

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The record at `path`; None where it is missing or incomplete, or of an earlier boot of the system."""
        try:
            values = json.loads(path.read_text())
            command = values["command"]
            record = cls(
                values["group"],
                ProcessId(**values["watcher"]),
                ProcessId(**command) if command else None,
                values["boot"],
            )
            return record if record.boot == _boot_id() else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Write the record to `path`. Raises OSError; then the file is unchanged, or missing.

        On a full disk an existing record is overwritten, which needs no more space.
        """
        text = json.dumps(asdict(self))
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_text(text)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            if not path.exists():
                raise
            with path.open("r+") as file:
                file.write(text)
                file.truncate()


class Child(Protocol):
    """The process of a command, as the process sees it that has started it."""

    pid: int

    def is_alive(self) -> bool: ...

    @property
    def exit_code(self) -> int | None:
        """None while it runs, and where it cannot be known."""

    def wait(self) -> object:
        """Wait until it has ended."""


class Spawned(subprocess.Popen[bytes]):
    """A child process of this one."""

    def is_alive(self) -> bool:
        return self.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self.poll()


class Launch(Protocol):
    """Starts a command in a process group. Raises OSError; then no process is left."""

    def __call__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        output: int | IO[bytes] | None,
        group: int,
    ) -> Child: ...


def spawn(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    output: int | IO[bytes] | None,
    group: int,
    descriptors: tuple[int, ...] = (),
) -> Child:
    """Start the command as a child process of this one."""
    return Spawned(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        env=dict(environment),
        pass_fds=descriptors,
        process_group=group,
    )


class ProcessGroup:
    """A command and everything it starts, from start to the last kill."""

    def __init__(self, record: GroupRecord, record_path: Path, child: Child | None = None) -> None:
        self.record = record
        self._record_path = record_path
        self._child = child
        self._watcher: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        *,
        record_path: Path,
        environment: Mapping[str, str],
        lifeline: int,
        output: int | IO[bytes] | None = None,
        descriptors: tuple[int, ...] = (),
        title: str = "tunewright: lifeline",
        launch: Launch | None = None,
    ) -> Self:
        """Start `command` in a group of its own. `output` takes stdout and stderr; None shares this process's.

        `launch` starts it in another way than as a child that gets the lifeline and the descriptors.
        """
        watcher = _watch(lifeline, title, group=0)
        child = None
        try:
            watcher_id = ProcessId.of(watcher.pid)
            record_path.parent.mkdir(parents=True, exist_ok=True)
            GroupRecord(watcher.pid, watcher_id, None).write(record_path)
            launch = launch or partial(spawn, descriptors=(lifeline, *descriptors))
            child = launch(
                command,
                environment={**environment, LIFELINE_VARIABLE: str(lifeline)},
                output=output,
                group=watcher.pid,
            )
            try:
                command_id = ProcessId.of(child.pid)
            except ProcessLookupError:  # it has ended and was reaped elsewhere; its exit code follows
                command_id = ProcessId(child.pid, -1)
            record = GroupRecord(watcher.pid, watcher_id, command_id)
            record.write(record_path)
        except BaseException:  # no such command, or a full disk: no process may run without a record
            os.killpg(watcher.pid, signal.SIGKILL)
            for process in (watcher, child):
                if process is not None:
                    process.wait()
            record_path.unlink(missing_ok=True)
            raise
        group = cls(record, record_path, child)
        group._watcher = watcher
        return group

    @classmethod
    def adopt(cls, record_path: Path) -> Self | None:
        """The recorded group, if its watcher or its command is still alive."""
        record = GroupRecord.read(record_path)
        if record is None:
            return None
        group = cls(record, record_path)
        return group if record.watcher.is_alive() or group.is_alive() else None

    def move_record(self, path: Path) -> None:
        """Keep the record at another path from now on, which needs no space. Raises OSError."""
        try:
            os.replace(self._record_path, path)
        except FileNotFoundError:  # somebody has removed it
            self.record.write(path)
        self._record_path = path

    @property
    def pid(self) -> int | None:
        """The id of the command's process."""
        return self.record.command.pid if self.record.command else None

    def is_alive(self) -> bool:
        """Whether the command runs."""
        if self._child is not None:
            return self._child.is_alive()
        return self.record.command is not None and self.record.command.is_alive()

    @property
    def exit_code(self) -> int | None:
        """The command's exit code. None while it runs, and where another process started it: only its parent learns
        it."""
        return self._child.exit_code if self._child is not None else None

    def keep_watched(self, lifeline: int, title: str = "tunewright: lifeline") -> None:
        """Start a new watcher where only the watcher was killed, since the command would outlive the lifeline."""
        if self.record.watcher.is_alive() or not self.is_alive():
            return
        if self._watcher is not None:
            self._watcher.wait()
        try:
            self._watcher = _watch(lifeline, title, group=self.record.group)
        except PermissionError:  # the command ended in between, and its group with it
            return
        self.record = replace(self.record, watcher=ProcessId.of(self._watcher.pid))
        self.record.write(self._record_path)

    def terminate(self) -> None:
        """Ask the command to stop (SIGTERM)."""
        self.send(signal.SIGTERM)

    def send(self, number: int) -> None:
        """Send a signal to the command, if it still runs."""
        if self.is_alive() and self.pid is not None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass  # it has ended in between

    def wait(self, timeout: float) -> bool:
        """Wait until the command has ended; False after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def end(self) -> None:
        """Kill what is left of the group, its watcher included, and remove its record."""
        # Where watcher and command were both killed alone, other members may be left; then the id is not reused.
        leader = _stat(self.record.group)
        if leader is None or self.record.watcher.holds_its_id() or self.is_alive():
            try:
                os.killpg(self.record.group, signal.SIGKILL)
            except ProcessLookupError:
                pass  # the group has ended already
        for child in (self._child, self._watcher):
            if child is not None:
                child.wait()
        deadline = time.monotonic() + 5
        while (self.record.watcher.is_alive() or self.is_alive()) and time.monotonic() < deadline:
            time.sleep(0.01)
        with suppress(OSError):  # a record without processes does no harm
            self._record_path.unlink()

    def stop(self, grace: float) -> None:
        """Send SIGTERM to the command, and after at most `grace` seconds SIGKILL to the group."""
        self.terminate()
        self.wait(grace)
        self.end()


def _watch(lifeline: int, title: str, *, group: int) -> subprocess.Popen[bytes]:
    """Start a watcher in process group `group`; 0: as the leader of a new group."""
    return subprocess.Popen(
        [title, "-c", "read -r _; kill -KILL 0"],
        executable="/bin/sh",
        stdin=lifeline,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.environ.get("PATH", "/usr/bin:/bin")},
        process_group=group,
    )


def inherited_lifeline() -> int:
    """The lifeline's read end in a process that `ProcessGroup.start` started."""
    return int(os.environ[LIFELINE_VARIABLE])
