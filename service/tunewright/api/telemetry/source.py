"""What takes a while to find out: kept for some seconds, and found out by one call at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T_co = TypeVar("T_co", covariant=True)


class Source(Generic[T_co]):
    """What `read` returned, for `keeps` seconds. Used from one event loop only.

    A call that does not end is waited for by whoever asks, each within a limit; no second one is begun beside it.
    """

    def __init__(self, read: Callable[[], Awaitable[T_co]], keeps: float) -> None:
        self._read = read
        self._keeps = keeps
        self._call: asyncio.Task[T_co] | None = None
        self._ended_at = 0.0

    async def get(self, within: float) -> T_co:
        """Raises TimeoutError, and what the call raises."""
        call = self._call
        if call is None or (call.done() and self._is_old(call)):
            call = self._call = asyncio.create_task(self._begin())
            call.add_done_callback(_take_note)
        return await asyncio.wait_for(asyncio.shield(call), within)

    def _is_old(self, call: asyncio.Task[T_co]) -> bool:
        failed = call.cancelled() or call.exception() is not None
        return failed or asyncio.get_running_loop().time() - self._ended_at >= self._keeps

    async def _begin(self) -> T_co:
        try:
            return await self._read()
        finally:
            self._ended_at = asyncio.get_running_loop().time()


def _take_note(call: asyncio.Task[T_co]) -> None:
    """Nobody may be waiting any more for what it raised."""
    if not call.cancelled():
        call.exception()
