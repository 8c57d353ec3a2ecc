"""A model judges the pairs of answers of an evaluation, as `evaluator.pairs` has it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tunewright.evaluator.asking import AnswersFile, Asking
from tunewright.evaluator.folder import Asked, AskedJudge, EvaluationSpec
from tunewright.evaluator.pairs import (
    MOST_TOKENS,
    SCORES,
    Judgement,
    Pair,
    judgement,
    winner,
)
from tunewright.evaluator.questions import question_of
from tunewright.evaluator.report import Calibration, Judged
from tunewright.metrics.agreement import agreement, cohen_kappa
from tunewright.metrics.intervals import Floats, Table, means
from tunewright.metrics.win_rates import Outcome
from tunewright.rows.canonical import is_preference, with_answer
from tunewright.rows.formats import read_rows


class Judging:
    """All pairs of an evaluation: the evaluated model's answers with those of each other model, and for calibration the
    pairs of which the data says which answer is better."""

    def __init__(
        self,
        spec: EvaluationSpec,
        judge: AskedJudge,
        pairs: Sequence[Sequence[Pair]],
        labelled: Sequence[Pair],
    ) -> None:
        self._judge = judge
        self._pairs = pairs
        self._labelled = labelled
        self.questions = [
            question for group in (*pairs, labelled) for pair in group for question in pair.questions(judge)
        ]
        self.spec = spec.model_copy(
            update={
                "models": [Asked(name=judge.name, content=judge.content, at_once=judge.at_once)],
                "temperature": 0.0,
                "max_tokens": MOST_TOKENS,
            }
        )

    async def ask(self, answers: AnswersFile, on_answer: Callable[[], None], stopped: asyncio.Event) -> None:
        await Asking(self.spec, self.questions, ("answer",), answers, on_answer).run(stopped)

    def judged(self, answers: AnswersFile) -> Judgements:
        """What came of it, when all was asked."""
        said = iter([winner(answers.kept[0, row, "answer"].answer) for row in range(len(self.questions))])
        of_pairs = [[_judgement(pair, said) for pair in group] for group in self._pairs]
        labelled = [_judgement(pair, said) for pair in self._labelled]
        return Judgements(self._judge.name, of_pairs, labelled, self.spec.seed)


def labelled_pairs(spec: EvaluationSpec, most: int) -> list[Pair]:
    """Pairs of the file of which the first answer is said to be the better one: the first ones that differ."""
    assert spec.file is not None, "a suite has no judge"
    found = []
    for place, row in read_rows(Path(spec.file), spec.reading):
        if is_preference(row):
            chosen, rejected = (question_of(place, with_answer(row, key)) for key in ("chosen", "rejected"))
            if chosen and rejected and chosen.expected != rejected.expected:
                hidden = replace(chosen, expected="")  # it would say which answer is the better one
                found.append(Pair(hidden, chosen.expected, rejected.expected))
        if len(found) == most:
            break
    return found


@dataclass(frozen=True)
class Judgements:
    """The judgements of each pair of models, in the order of the others, and of labelled pairs."""

    judge: str
    of_pairs: Sequence[Sequence[Judgement]]
    labelled: Sequence[Judgement]
    seed: int

    def scores(self, other: int) -> Floats:
        """1 where the evaluated model wins against the other (its number counts from 1), 0.5 for a tie, 0."""
        return np.array([SCORES[one.outcome] for one in self.of_pairs[other - 1]])

    def table(self, number: int) -> Table:
        """The win rate, ties as half a win: of the evaluated model against all others, of another one against it."""
        if number:
            return means(1 - self.scores(number))
        return means(np.mean([self.scores(other) for other in range(1, len(self.of_pairs) + 1)], axis=0))

    def pair(self, other: int) -> tuple[Table, Table]:
        return means(self.scores(other)), means(1 - self.scores(other))

    def outcomes(self, other: int) -> list[Outcome]:
        return [one.outcome for one in self.of_pairs[other - 1]]

    def report(self, names: Sequence[str]) -> list[Judged]:
        """For each other model."""
        return [
            Judged(
                against=name,
                judge=self.judge,
                wins=sum(one.outcome == "win" for one in found),
                ties=sum(one.outcome == "tie" for one in found),
                losses=sum(one.outcome == "loss" for one in found),
                inconsistent=sum(one.is_inconsistent for one in found),
                unjudged=sum(None in one.orders for one in found),
                first_preferred=_first_preferred(found),
            )
            for name, found in zip(names, self.of_pairs, strict=True)
        ]

    def calibration(self) -> Calibration | None:
        """How often the judge finds the answer that the data calls better; None without such pairs.

        Kappa needs labels that differ, so in every second pair, by chance, the better answer is called B.
        """
        if not self.labelled:
            return None
        is_swapped = np.random.default_rng(self.seed).random(len(self.labelled)) < 0.5
        flipped = {"win": "loss", "loss": "win", "tie": "tie"}
        labels = ["loss" if swapped else "win" for swapped in is_swapped]
        said = [
            flipped[one.outcome] if swapped else one.outcome
            for one, swapped in zip(self.labelled, is_swapped, strict=True)
        ]
        kappa = cohen_kappa(said, labels)
        return Calibration(
            rows=len(labels),
            agreement=agreement(said, labels),
            kappa=kappa if math.isfinite(kappa) else None,
            ties=said.count("tie"),
        )


def _judgement(pair: Pair, said: Any) -> Judgement:
    return Judgement(pair.known) if pair.known is not None else judgement((next(said), next(said)))


def _first_preferred(found: Sequence[Judgement]) -> float | None:
    said = [order for one in found for order in one.orders if order in ("A", "B")]
    return said.count("A") / len(said) if said else None
