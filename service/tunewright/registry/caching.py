"""What the caches of a bucket in the data folder have in common. The time of what is cached is that of its last use."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

SPARE = 64 * 2**20
"""Bytes of the disk that a download leaves free."""


def touch(path: Path) -> bool:
    """Note that a file or folder is used now. False where it does not exist."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def shrink(
    cached: Iterable[tuple[float, int, str]], most: int, in_use_seconds: float, evict: Callable[[str], bool]
) -> int:
    """Remove what was used longest ago until what is left has `most` bytes; what was used within `in_use_seconds`
    stays. `cached`: the time of the last use, the bytes and the name of each; `evict` removes one, unless it has to
    stay, and returns whether it has. Returns how many bytes are left."""
    oldest_first = sorted(cached)
    total = sum(size for _, size, _ in oldest_first)
    for used_at, size, name in oldest_first:
        if total <= most:
            break
        if time.time() - used_at > in_use_seconds and evict(name):
            total -= size
    return total
