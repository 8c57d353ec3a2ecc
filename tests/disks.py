"""Small disks that can be filled: real ones, in memory. They need the right to mount; without it tests are skipped."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(path: Path, megabytes: float) -> Iterator[Path]:
    """Mounts a separate disk at `path`."""
    path.mkdir(parents=True)
    size = f"size={int(megabytes * 1024)}k"
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(path)], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"cannot mount a small disk: {mount.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill_up(path: Path) -> Path:
    """Fill all the space that is left at `path` with a file, and return that file."""
    ballast = path / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    assert free(path) == 0
    return ballast


def free(path: Path) -> int:
    """The free space in bytes."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
