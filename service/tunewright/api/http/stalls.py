"""Logs what blocks the event loop: while it is blocked, no request is answered and no stream goes on."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

log = logging.getLogger("tunewright.api")

LIMIT = 0.25
"""Seconds. A longer block is logged; one that is longer by less than two ticks may be missed."""
_TICK = 0.05
_OF_THE_LOOP = ("runners.py", "base_events.py", "selectors.py")
"""Files of asyncio from which uvloop, or asyncio's own loop, waits."""
_DEEPEST, _DEEPEST_OF_OTHERS = 40, 4
"""Innermost frames that are logged of the event loop's thread, and of the others."""


@dataclass(frozen=True)
class _Beat:
    """A sign of life of the event loop: its time, and the processor time of the process by then, in seconds."""

    at: float
    used: float


class StallWatch:
    """Logs each block of the running event loop over `LIMIT`, with the stack of its thread, and how long it took.

    A thread looks at the loop's signs of life. Where the interpreter itself was held (by one long call into C), that
    thread could not run either, and logs where all threads are as soon as it can: the caller is one of them.

    What the machine does is no block: neither time in which the threads of this process were ready to run and there was
    no processor for them, since each may have held the interpreter; nor a loop that is in no callback while the process
    uses little of a processor.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._native_id = threading.get_native_id()
        self._beat = _now()
        self._longest: tuple[_Beat, _Beat] | None = None
        """The longest block that has ended and that the thread has not seen: the beats before and after it."""
        self._stopped = threading.Event()
        self._timer = self._loop.call_later(_TICK, self._tick)
        threading.Thread(target=self._watch, name="stalls", daemon=True).start()

    def stop(self) -> None:
        self._timer.cancel()
        self._stopped.set()

    def _tick(self) -> None:
        block = self._beat, _now()
        if _seconds(*block) > max(LIMIT, _seconds(*self._longest) if self._longest else 0):
            self._longest = block
        self._beat = block[1]
        self._timer = self._loop.call_later(_TICK, self._tick)

    def _watch(self) -> None:
        schedules = [_open_schedule(thread) for thread in (self._native_id, threading.get_native_id())]
        known, logged = self._beat, None
        late: tuple[_Beat, dict[str, float]] | None = None
        """The beat that is late, and how long each thread had waited for a processor when that was first seen."""
        at_beat = at_last_look = [_starved(schedule) for schedule in schedules]
        while not self._stopped.wait(_TICK):
            starved = [_starved(schedule) for schedule in schedules]
            beat, now = self._beat, _now()
            if beat is not known:
                known, at_beat = beat, at_last_look
            wait = max(later - early for early, later in zip(at_beat, starved, strict=True))
            over = _seconds(beat, now) - wait
            if over > _TICK and (late is None or late[0] is not beat):
                late = beat, _starved_threads()
            if (
                beat is not logged
                and over > LIMIT
                and late is not None
                and over - _grown(late[1], _starved_threads()) > LIMIT
                and self._is_at_fault(beat, now)
            ):
                logged = beat
                log.error("the event loop was blocked for over %g s; it is at\n%s", LIMIT, self._stacks())
            ended, self._longest = self._longest, None
            if ended is not None and ended[0] is logged:
                log.error("the event loop was blocked for %.2f s, and goes on", _seconds(*ended))
            elif ended is not None and _seconds(*ended) - wait > LIMIT and _is_busy(*ended):
                log.error(
                    "the event loop was blocked for %.2f s; it goes on, and the threads are at\n%s",
                    _seconds(*ended), self._stacks(),
                )  # fmt: skip
            at_last_look = starved
        for schedule in schedules:
            if schedule is not None:
                os.close(schedule)

    def _is_at_fault(self, beat: _Beat, now: _Beat) -> bool:
        """Whether something of this process blocks the loop now."""
        return _is_busy(beat, now) or not _is_idle(sys._current_frames().get(self._thread))

    def _stacks(self) -> str:
        """The stack of the loop's thread, and the innermost frames of the others, one of which may hold the
        interpreter."""
        frames = sys._current_frames()
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        others = [
            f"thread {names.get(id, id)}:\n{_shown(frame, _DEEPEST_OF_OTHERS)}"
            for id, frame in frames.items()
            if id not in (self._thread, threading.get_ident())
        ]
        return "".join([_shown(frames.get(self._thread), _DEEPEST), *others])


def _now() -> _Beat:
    return _Beat(time.monotonic(), time.process_time())


def _seconds(before: _Beat, after: _Beat) -> float:
    """The time in which the loop did not get to its next tick."""
    return after.at - before.at - _TICK


def _is_busy(before: _Beat, after: _Beat) -> bool:
    """Whether some thread may have held the interpreter most of the time, and over `LIMIT`."""
    return after.used - before.used > max(LIMIT, (after.at - before.at) / 2)


def _is_idle(frame: FrameType | None) -> bool:
    """Whether the loop's thread is in the loop itself, and in no callback."""
    return frame is None or os.path.basename(frame.f_code.co_filename) in _OF_THE_LOOP


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


def _starved_threads() -> dict[str, float]:
    """`_starved` of each thread of this process. Only read while the loop is late: it takes 15 us a thread."""
    found = {}
    for thread in os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else ():
        with suppress(OSError):  # it has ended
            found[thread] = int(Path(f"/proc/self/task/{thread}/schedstat").read_bytes().split()[1]) / 1e9
    return found


def _grown(before: dict[str, float], after: dict[str, float]) -> float:
    """Seconds by which all of `after` is more."""
    return sum(seconds - before.get(thread, seconds) for thread, seconds in after.items())
