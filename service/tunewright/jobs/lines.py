"""Files to which a process appends lines, and which a process that is started again reads and goes on with."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path


class AppendedLines:
    """A file of lines. Each is written with one call, so that a process that is killed leaves at most an incomplete
    last one, which is cut off at the next start."""

    def __init__(self, path: Path, read: Callable[[bytes], object]) -> None:
        """`read` gets each line that is there, without its end. It raises ValueError at one that is none, as power loss
        may leave them: that one and all behind it are cut off."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        complete = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    read(line[:-1])
                except ValueError:
                    break
                complete += len(line)
        if complete < os.fstat(self._descriptor).st_size:
            os.truncate(self._descriptor, complete)

    def append(self, line: bytes) -> None:
        """Append a line, which has no line end in it. Raises OSError where the disk is full: then nothing of it is
        left."""
        before = os.fstat(self._descriptor).st_size
        whole = line + b"\n"
        try:
            written = os.write(self._descriptor, whole)
        except OSError:
            written = 0
        if written < len(whole):
            os.truncate(self._descriptor, before)
            if os.write(self._descriptor, whole) < len(whole):  # raises the error of the disk, mostly
                os.truncate(self._descriptor, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)
