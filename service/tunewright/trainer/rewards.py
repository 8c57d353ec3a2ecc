"""The rewards of answers, by the job's grader, for TRL's trainers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerState

from tunewright.graders.calling import grade_batch
from tunewright.graders.models import AnyGrader
from tunewright.graders.outcome import Outcome
from tunewright.graders.sandbox import Mode
from tunewright.graders.templates import Sample
from tunewright.jobs.failure import TrainingFailed
from tunewright.trainer.metrics import OF_GRADER
from tunewright.trainer.scores import ModelScores


class Rewards:
    """A reward function as TRL calls it. Answers are graded in processes with limits; one that cannot be graded has the
    reward 0, and is counted. `tell` is called with the first error of each kind, `beat` as the work goes on. `scores`:
    of the models that the grader asks."""

    __name__ = "grader"

    def __init__(
        self,
        grader: AnyGrader,
        mode: Mode,
        tell: Callable[[str], None],
        beat: Callable[[], None],
        scores: ModelScores | None = None,
    ) -> None:
        self._grader = grader
        self._mode = mode
        self._tell = tell
        self._beat = beat
        self._scores = scores
        self._told: set[str] = set()

    def __call__(
        self,
        *,
        completions: Sequence[str],
        item: Sequence[str],
        trainer_state: TrainerState,
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float]:
        """Raises TrainingFailed where no answer could be graded, which no training can better."""
        samples = [Sample(text) for text in completions]
        items = [json.loads(one) for one in item]
        answered = None
        if self._scores is not None:
            answered = self._scores.answered(trainer_state.global_step, samples, items, self._beat)
        outcomes = grade_batch(self._grader, samples, items, self._mode, self._beat, answered=answered)
        self._refuse_faulty(outcomes)
        log_metric("grader_errors", sum(bool(one.errors.names) for one in outcomes) / len(outcomes))
        self._tell_errors(outcomes)
        for name in outcomes[0].sub_rewards:
            rewards = [one.sub_rewards[name] for one in outcomes]
            log_metric(f"{OF_GRADER}{name}", sum(rewards) / len(rewards))
        return [one.reward for one in outcomes]

    def _tell_errors(self, outcomes: Sequence[Outcome]) -> None:
        """Tell the first error of each kind."""
        for outcome in outcomes:
            new = set(outcome.errors.names) - self._told
            if new:
                self._told |= new
                self._tell(
                    f"An answer could not be graded, and has the reward 0: {outcome.errors.describe()[:1000]}"
                )

    def _refuse_faulty(self, outcomes: Sequence[Outcome]) -> None:
        if all(one.errors.is_of_the_grader for one in outcomes):
            (told, _), *_ = Counter(one.errors.describe() for one in outcomes).most_common(1)
            raise TrainingFailed(
                "grader_failed", f"the grader failed on all {len(outcomes)} answers of a step: {told}"
            )
