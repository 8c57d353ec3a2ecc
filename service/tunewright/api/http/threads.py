"""Threads of their own for work that must not wait for other work, or that others must not wait for.

The pools that FastAPI and asyncio share out are taken by whatever is slow: a writer that waits for the database's
lock, say. Nothing that a generation needs runs in them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from tunewright.errors import TooManyRequests

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """`number` threads for calls of one kind; others wait until one is free.

    With `most`, only so many calls run or wait at a time, and more are refused with `code`.
    """

    def __init__(
        self, name: str, number: int, *, most: int | None = None, code: str = "too_many_uploads"
    ) -> None:
        self._pool = ThreadPoolExecutor(number, thread_name_prefix=name)
        self._name = name
        self._most, self._code = most, code
        self._places = threading.Semaphore(most) if most is not None else None

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns, called in one of the threads. Raises what it raises, and TooManyRequests."""
        places = self._places
        if places is not None and not places.acquire(blocking=False):
            raise TooManyRequests(
                f"{self._most} {self._name} are being carried out, which is the limit: wait for one to end.",
                code=self._code,
                retry_after=5,
            )
        try:
            call = self._pool.submit(function, *args, **kwargs)
        except BaseException:
            if places is not None:
                places.release()
            raise
        if places is not None:
            call.add_done_callback(lambda _: places.release())  # also where nobody waits for it any more
        return await asyncio.wrap_future(call)
