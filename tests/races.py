"""Runs a function in many threads at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def at_once(count: int, do: Callable[[int], Any]) -> list[Any]:
    """`do(0..count-1)` in threads that start together."""
    barrier = threading.Barrier(count)

    def run(index: int) -> Any:
        barrier.wait()
        return do(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
