"""Runs answers that are programs with their tests, each in a process of its own: the sandbox of `python` graders."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

from tunewright.evaluator.suites import SuiteQuestion
from tunewright.graders.sandbox import Mode, run
from tunewright.graders.templates import Sample
from tunewright.jobs.process import end_with

_AT_ONCE = 2
"""Programs that run at a time: their processor time is limited, and others need it too."""
_SOURCE = """
def grade(sample, item):
    exec(compile(item["program"], "answer.py", "exec"), {"__name__": "answer"})
    return 1.0
"""


class NotRun(Exception):
    """No program can be run here."""


class Programs:
    """Processes that run programs: the sandbox is set up in the main thread of one."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._pool: ProcessPoolExecutor | None = None

    async def passes(self, question: SuiteQuestion, answer: str) -> bool:
        """Whether the prompt with the answer behind it passes the question's tests. Raises NotRun."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                _AT_ONCE, mp_context=context, initializer=end_with, initargs=(os.getpid(),)
            )
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, passes, question, answer, self._mode)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def passes(question: SuiteQuestion, answer: str, mode: Mode) -> bool:
    """As `Programs.passes`, in this process."""
    assert question.test is not None, "others are not run"
    program = f"{question.prompt}{answer}\n{question.test}"
    outcome = run(_SOURCE, Sample(answer), {"program": program}, mode)
    if outcome.errors.python_grader_server_error:
        raise NotRun(outcome.errors.describe())
    return outcome.reward == 1.0
