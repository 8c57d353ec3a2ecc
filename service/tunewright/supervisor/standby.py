"""A standby of a service: a process that has imported everything and waits until the service needs it.

A service's imports take seconds, and are most of the time for which it is away after a crash. The standby waits for a
byte from a pipe; when the supervisor ends, the pipe closes, and the standby ends too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tunewright.supervisor.process import ProcessGroup

_GO = b"g"


class Standby:
    """A process that waits to be the service, as the supervisor sees it."""

    def __init__(self, group: ProcessGroup, go: int) -> None:
        self._group = group
        self._go = go

    @classmethod
    def start(
        cls,
        command: list[str],
        *,
        record_path: Path,
        environment: Mapping[str, str],
        lifeline: int,
        descriptors: tuple[int, ...],
        title: str,
    ) -> Self:
        """Start `command` with `--standby DESCRIPTOR` in a group of its own. Raises OSError."""
        wait, go = os.pipe()
        try:
            group = ProcessGroup.start(
                [*command, "--standby", str(wait)],
                record_path=record_path,
                environment=environment,
                lifeline=lifeline,
                descriptors=(*descriptors, wait),
                title=title,
            )
        except BaseException:
            os.close(go)
            raise
        finally:
            os.close(wait)
        return cls(group, go)

    @property
    def pid(self) -> int | None:
        return self._group.pid

    def is_alive(self) -> bool:
        return self._group.is_alive()

    def can_take_over(self) -> bool:
        """Whether it runs, and was not stopped by a signal."""
        command = self._group.record.command
        return self.is_alive() and command is not None and not command.is_stopped()

    def take_over(self, record_path: Path) -> ProcessGroup:
        """Let it go on as the service, with its record at `record_path`. Raises OSError; then it was ended."""
        try:
            self._group.move_record(record_path)
            os.write(self._go, _GO)
        except OSError:
            self.end()
            raise
        os.close(self._go)
        return self._group

    def end(self) -> None:
        os.close(self._go)
        self._group.end()


def wait_until_needed(descriptor: int) -> bool:
    """In the standby: wait until this process is to be the service. False where the supervisor has ended."""
    try:
        return os.read(descriptor, 1) == _GO
    finally:
        os.close(descriptor)
