"""Answers that are graded by the graders of the request, for the metric grader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunewright.evaluator.folder import AskedGrader
from tunewright.evaluator.questions import Question
from tunewright.graders.calling import grade_batch
from tunewright.graders.outcome import Outcome
from tunewright.graders.templates import Sample
from tunewright.jobs.failure import TrainingFailed

ITEM = ("asked", "expected")
"""What a grader may refer to of a row: the last message or the prompt, and the expected answer."""


@dataclass(frozen=True)
class Graded:
    """The rewards of one model's answers. An answer that is missing, or cannot be graded, has the reward 0."""

    rewards: Sequence[float]
    ungraded: int
    first_error: str | None


def graded(
    asked: AskedGrader, rows: Sequence[Question], answers: Sequence[str | None], on_part: Callable[[], None]
) -> Graded:
    """Grade the answers in processes with limits. Raises TrainingFailed where the grader fails on all of them, whatever
    they say."""
    given = [(row, answer) for row, answer in zip(rows, answers, strict=True) if answer is not None]
    outcomes = iter(
        grade_batch(
            asked.grader,
            [Sample(answer) for _, answer in given],
            [{"asked": row.text(), "expected": row.expected} for row, _ in given],
            asked.mode,
            on_part,
        )
    )
    found = [next(outcomes) if answer is not None else None for answer in answers]
    failed = [one for one in found if one is not None and one.errors.names]
    if failed and len(failed) == len(given) and all(one.errors.is_of_the_grader for one in failed):
        raise TrainingFailed(
            "grader_failed", f"the grader failed on all {len(failed)} answers: {_most(failed)}"
        )
    rewards = [one.reward if one is not None else 0.0 for one in found]
    return Graded(rewards, len(failed), failed[0].errors.describe()[:500] if failed else None)


def _most(failed: Sequence[Outcome]) -> str:
    (told, _), *_ = Counter(one.errors.describe() for one in failed).most_common(1)
    return told[:500]
