"""Files and folders that appear complete or not at all, also after power loss."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a write failed because the disk or the user's quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, text: str) -> None:
    """Replace the file at `path` with `text`: completely or not at all, also after power loss."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # an incomplete file, most likely on a full disk
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make renames in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_folder(temporary: Path, final: Path) -> None:
    """Rename a complete folder to its final name, durably: its files are synced first."""
    for file in temporary.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    sync_folder(temporary)
    os.replace(temporary, final)
    sync_folder(final.parent)
