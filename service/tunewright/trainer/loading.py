"""Measures how long steps wait for their rows, and warns where that is much of their time."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

from tunewright.jobs.folder import EventLog
from tunewright.plan.pitfalls import loader_blocks

_STEPS = 20
"""Steps after which it is judged. The first one is left out: the processes that read rows start in it."""


class LoadingCallback(TrainerCallback):  # type: ignore[misc]
    """Has the seconds of steps, and of waits for their rows, which the trainer tells (`HeldOutTrainer.on_wait`)."""

    def __init__(self, events: EventLog, workers: int) -> None:
        self._events = events
        self._workers = workers
        self._began = time.monotonic()
        self._steps = 0
        self._step_seconds = 0.0
        self.waited = 0.0
        """Seconds that the steps of this process have waited for their rows, all but the first."""

    def wait(self, seconds: float) -> None:
        if self._steps:
            self.waited += seconds

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.monotonic()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self._steps:
            self._step_seconds += time.monotonic() - self._began
        self._steps += 1
        if self._steps == _STEPS + 1:
            seconds = self._step_seconds + self.waited
            if blocks := loader_blocks(self.waited, seconds, self._workers):
                self._events.message(blocks, level="warn", data={"code": "loader_blocks"})
