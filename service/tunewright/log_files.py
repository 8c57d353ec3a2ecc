"""The log files of child processes: kept small while the processes write to them, and read in pieces.

A process writes to its log directly, opened for appending: there is no pipe whose reader could die or fall behind, and
so stop the process. Where a log has become too large its content is copied to `<name>.1` and the file is emptied. The
process goes on writing at its new end, and a line that it writes between these two steps is lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

LARGEST = 16 * 2**20
"""Bytes of a log above which it is rotated."""
KEPT = 3
"""Older parts that are kept, `<name>.1` (the newest) to `<name>.3`."""
LONGEST_LINE = 4000
"""Bytes of a line; the rest is left out of older parts, and when a log is read."""
_BLOCK = 64 * 2**10
CONTINUED = "--- the older lines of this run are in an older part of the log ---"
"""The first line of a log that was rotated while its process ran."""
_CONTINUED = CONTINUED.encode() + b"\n"


def parts(path: Path) -> list[Path]:
    """The log's files, the oldest part first and `path` last, whether or not they exist."""
    return [_part(path, number) for number in range(KEPT, 0, -1)] + [path]


def parts_of_run(path: Path) -> list[Path]:
    """Those of the log's files that the current run has written, the oldest part first and `path` last."""
    found = [path]
    for number in range(1, KEPT + 1):
        if not _is_continued(found[0]) or not _part(path, number).exists():
            break
        found.insert(0, _part(path, number))
    return found


def begin_anew(path: Path) -> None:
    """Make the current content an older part, before a new process is started. Raises OSError."""
    if path.exists():
        _make_room(path)
        path.replace(_part(path, 1))


def keep_small(path: Path) -> bool:
    """Rotate the log where it is too large. Returns whether it was. May be called while a process appends to it.

    On a full disk the content is dropped. Raises OSError where it cannot be emptied.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return False
    if size <= LARGEST:
        return False
    _make_room(path)
    older = _part(path, 1)
    try:
        with path.open("rb") as source, older.open("wb") as target:
            if _is_continued(path):
                target.write(_CONTINUED)
            source.seek(size - LARGEST)
            for line in _lines(source):
                target.write(line)
    except OSError:
        older.unlink(missing_ok=True)
    os.truncate(path, 0)
    with suppress(OSError), path.open("ab") as emptied:
        emptied.write(_CONTINUED)
    return True


def read(paths: Sequence[Path], tail: int | None = None) -> Iterator[str]:
    """The lines of these files one after another, or only the last `tail`, each with its newline and cut to
    `LONGEST_LINE`. Missing files are left out. Memory is bounded, however large the files are."""
    starts: list[tuple[Path, int]] = []
    wanted = tail
    for path in reversed(paths):
        if wanted is not None and wanted <= 0:
            break
        with suppress(FileNotFoundError):
            start, found = (0, 0) if wanted is None else _start_of_tail(path, wanted)
            starts.insert(0, (path, start))
            wanted = None if wanted is None else wanted - found
    for path, start in starts:
        with suppress(FileNotFoundError), path.open("rb") as file:
            file.seek(start)
            for line in _lines(file):
                yield line.decode(errors="replace")


def last_text(paths: Sequence[Path], most: int) -> str:
    """The last `most` bytes of these files one after another. Raises FileNotFoundError where the last is missing."""
    text = b""
    for path in reversed(paths):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - (most - len(text))))
            text = file.read() + text
        if len(text) >= most:
            break
    return text.decode(errors="replace")


def _is_continued(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_CONTINUED)) == _CONTINUED
    except OSError:
        return False


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines from here on, each cut to `LONGEST_LINE`."""
    while line := file.readline(LONGEST_LINE):
        left_out = 0
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            while rest := file.readline(_BLOCK):
                left_out += len(rest)
                if rest.endswith(b"\n"):
                    break
        yield line + b"... (%d bytes are left out)\n" % left_out if left_out > 1 else line + b"\n" * left_out


def _start_of_tail(path: Path, lines: int) -> tuple[int, int]:
    """The offset at which the last `lines` lines begin, and how many there are."""
    with path.open("rb") as file:
        position = size = file.seek(0, os.SEEK_END)
        found = 0
        while position:
            start = max(0, position - _BLOCK)
            file.seek(start)
            block = file.read(position - start)
            at = len(block)
            while (at := block.rfind(b"\n", 0, at)) >= 0:
                if start + at + 1 == size:
                    continue  # the newline at the end begins no line
                found += 1
                if found == lines:
                    return start + at + 1, lines
            position = start
        return 0, found + (1 if size else 0)


def _part(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _make_room(path: Path) -> None:
    """Rename the older parts, so that there is no part 1; the oldest one goes."""
    for number in range(KEPT, 1, -1):
        with suppress(FileNotFoundError):
            _part(path, number - 1).replace(_part(path, number))
