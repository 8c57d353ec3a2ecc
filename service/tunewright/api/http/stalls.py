"""Logs what blocks the event loop: while it is blocked, no request is answered and no stream goes on."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from types import FrameType

log = logging.getLogger("tunewright.api")

LIMIT = 0.25
"""Seconds. A longer block is logged."""
_TICK = 0.025
_DEEPEST, _DEEPEST_OF_OTHERS = 40, 4
"""Innermost frames that are logged of the event loop's thread, and of the others."""


@dataclass(frozen=True)
class _Beat:
    """A sign of life of the event loop, in seconds: its time, and how long its thread had waited for a processor."""

    at: float
    starved: float


class StallWatch:
    """Logs each block of the running event loop over `LIMIT`, with the stack of its thread, and how long it took.

    A thread looks at the loop's signs of life. Where the interpreter itself was held (by one long call into C), that
    thread could not run either, and logs where all threads are as soon as it can: the caller is one of them. The time
    in which the loop's thread was ready to run and the machine had no processor for it does not count.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._schedule = _open_schedule(threading.get_native_id())
        self._beat = self._now()
        self._longest: tuple[_Beat, float] | None = None
        """The longest block that has ended and that the thread has not seen: the beat before it, and its seconds."""
        self._stopped = threading.Event()
        self._timer = self._loop.call_later(_TICK, self._tick)
        threading.Thread(target=self._watch, name="stalls", daemon=True).start()

    def stop(self) -> None:
        self._timer.cancel()
        self._stopped.set()

    def _tick(self) -> None:
        beat = self._now()
        blocked = _between(self._beat, beat)
        if blocked > LIMIT and (self._longest is None or blocked > self._longest[1]):
            self._longest = self._beat, blocked
        self._beat = beat
        self._timer = self._loop.call_later(_TICK, self._tick)

    def _watch(self) -> None:
        seen: _Beat | None = None
        looked = time.monotonic()
        while not self._stopped.wait(_TICK):
            before, looked = looked, time.monotonic()
            was_held = looked - before > LIMIT  # this thread could not run either
            beat = self._beat
            if beat is not seen and _between(beat, self._now()) > LIMIT and beat is self._beat:
                seen = beat
                stacks = self._all_stacks() if was_held else self._stack()
                log.error("the event loop was blocked for over %g s; it is at\n%s", LIMIT, stacks)
            ended, self._longest = self._longest, None
            if ended is not None and ended[0] is seen:
                log.error("the event loop was blocked for %.2f s, and goes on", ended[1])
            elif ended is not None:
                log.error(
                    "the event loop was blocked for %.2f s; it goes on, and the threads are at\n%s",
                    ended[1], self._all_stacks(),
                )  # fmt: skip

    def _now(self) -> _Beat:
        return _Beat(time.monotonic(), _starved(self._schedule))

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._thread)
        return _shown(frame, _DEEPEST)

    def _all_stacks(self) -> str:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        return "".join(
            f"thread {names.get(id, id)}:\n{_shown(frame, _DEEPEST_OF_OTHERS)}"
            for id, frame in sys._current_frames().items()
            if id != threading.get_ident()
        )


def _between(earlier: _Beat, later: _Beat) -> float:
    """The seconds in which the loop did not get to its next tick, although its thread ran or waited for something."""
    return later.at - earlier.at - _TICK - (later.starved - earlier.starved)


def _shown(frame: FrameType | None, deepest: int) -> str:
    return "".join(traceback.format_stack(frame, deepest)) if frame is not None else "(it has ended)\n"


def _open_schedule(thread: int) -> int | None:
    try:
        return os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None  # not Linux, or a kernel without these statistics


def _starved(schedule: int | None) -> float:
    """The seconds that a thread has been ready to run without a processor."""
    return int(os.pread(schedule, 64, 0).split()[1]) / 1e9 if schedule is not None else 0.0
