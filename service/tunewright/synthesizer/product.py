"""Makes rows of the answers, in the order of the requests: the same answers give the same rows, whatever their order
was, and however often the process was started."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.graders.calling import grade_batch
from tunewright.graders.outcome import Outcome
from tunewright.graders.templates import Sample
from tunewright.jobs.failure import TrainingFailed
from tunewright.rows.canonical import Row
from tunewright.rows.faults import RowFault, check_encodable
from tunewright.rows.formats import read_rows
from tunewright.rows.reading import Reading
from tunewright.rows.shapes import convert
from tunewright.synthesizer import texts
from tunewright.synthesizer.answers import Answers
from tunewright.synthesizer.duplicates import Seen
from tunewright.synthesizer.folder import SynthesisSpec
from tunewright.synthesizer.questions import Asker, Dropped, Kept
from tunewright.synthesizer.report import DroppedRows, ScoreSummary, SynthesisReport
from tunewright.synthesizer.tasks import AnswersTask

ITEM = ("asked", "expected")
"""What a grader may refer to of a row: the last message or the prompt, and the answer that the row had."""
_AS_IT_IS = Reading()
_PART = 1000
"""Rows after which `on_part` is called."""


@dataclass
class Made:
    """What came of all requests."""

    rows: dict[int, Row] = field(default_factory=dict)
    """By the numbers of their requests, in their order."""
    dropped: dict[int, Dropped] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    """Of answers that were graded."""

    def drop(self, number: int, why: Dropped) -> None:
        self.rows.pop(number, None)
        self.dropped[number] = Dropped(why.reason, why.text)  # without the frames of the one that was raised


class Maker:
    """Makes the rows of one synthesis."""

    def __init__(self, spec: SynthesisSpec, asker: Asker, on_part: Callable[[], None]) -> None:
        """`on_part` is called as the work goes on; what it raises ends the work."""
        self._spec = spec
        self._asker = asker
        self._on_part = on_part
        self._source: Seen | None = None
        """The rows of the file, where those are left out."""

    def make(self, kept: dict[int, Kept], requests: int) -> Made:
        """Raises TrainingFailed where the grader fails on all answers, and InvalidData."""
        made = Made()
        for number in range(requests):
            if number % _PART == 0:
                self._on_part()
            try:
                made.rows[number] = self._row(number, kept)
            except Dropped as why:
                made.drop(number, why)
        task = self._spec.task
        if isinstance(task, AnswersTask) and task.grader is not None:
            self._grade(task, made)
        self._remove_copies(made)
        return made

    def _row(self, number: int, kept: dict[int, Kept]) -> Row:
        """Raises Dropped."""
        if number not in kept:
            next(self._asker.forms(number))  # raises what it could not be asked for
            raise AssertionError(f"request {number} was not asked")
        row = self._asker.made(number, kept[number])
        try:
            convert(row, _AS_IT_IS)
            check_encodable(row)
        except RowFault as fault:
            raise Dropped("invalid_row", str(fault)) from fault
        return row

    def _grade(self, task: AnswersTask, made: Made) -> None:
        asker, grader = self._asker, task.grader
        assert isinstance(asker, Answers), "it is the task answers"
        assert grader is not None, "there is one"
        numbers = list(made.rows)
        outcomes = grade_batch(
            grader,
            [Sample(_answer(made.rows[number])) for number in numbers],
            [_item(asker, number) for number in numbers],
            self._spec.python_graders,
            self._on_part,
        )
        _check_grader(outcomes)
        for number, outcome in zip(numbers, outcomes, strict=True):
            if outcome.errors.names:
                made.drop(number, Dropped("not_graded", outcome.errors.describe()[:500]))
                continue
            made.scores[number] = outcome.reward
            if task.min_score is not None and outcome.reward < task.min_score:
                made.drop(number, Dropped("low_score", f"{outcome.reward:g} is below {task.min_score:g}"))
        if task.keep == "best":
            _keep_best(task.n, made)

    def _remove_copies(self, made: Made) -> None:
        options = self._spec.deduplicate
        seen = Seen(options.similarity)
        source = self._seen_source() if self._leaves_out_source() else None
        for count, (number, row) in enumerate(list(made.rows.items())):
            if count % _PART == 0:
                self._on_part()
            compared = self._asker.compared(number, row)
            if source is not None and (how := source.has(compared)) is not None:
                made.drop(number, Dropped("in_source" if how == "same" else "near_in_source"))
            elif (how := seen.has(compared, and_add=True)) is not None:
                made.drop(number, Dropped("duplicate" if how == "same" else "near_duplicate"))

    def _leaves_out_source(self) -> bool:
        wanted = self._spec.deduplicate.source
        return self._spec.task.type != "answers" if wanted is None else wanted

    def _seen_source(self) -> Seen:
        if self._source is None:
            self._source = Seen(self._spec.deduplicate.similarity)
            for number, (_, row) in enumerate(read_rows(Path(self._spec.file), self._spec.reading)):
                if number % _PART == 0:
                    self._on_part()
                compared = self._asker.source(row)
                if compared is not None:
                    self._source.has(compared, and_add=True)
        return self._source

    def report(self, made: Made, kept: dict[int, Kept], requests: int, drawn: int) -> SynthesisReport:
        """What came of it, counted."""
        report = SynthesisReport(
            rows_in_file=self._spec.rows_in_file,
            rows_drawn=drawn,
            requests=requests,
            rows_made=len(made.rows),
            prompt_tokens=sum(one.prompt_tokens for one in kept.values()),
            completion_tokens=sum(one.completion_tokens for one in kept.values()),
            prompts_version=texts.VERSION,
        )
        for number, why in sorted(made.dropped.items()):
            found = report.dropped.setdefault(why.reason, DroppedRows())
            found.note(self._asker.place(number), why.text)
        if scores := list(made.scores.values()):
            mean = sum(scores) / len(scores)
            report.scores = ScoreSummary(graded=len(scores), mean=mean, least=min(scores), most=max(scores))
        return report

    def dropped_lines(self, made: Made, kept: dict[int, Kept]) -> list[str]:
        """A line for each request that became no row."""
        lines = []
        for number, why in sorted(made.dropped.items()):
            answer = kept.get(number)
            told: dict[str, Any] = {
                "request": number + 1,
                "row": self._asker.place(number) if self._spec.task.type != "rows" else None,
                "reason": why.reason,
                "message": why.text,
                "answer": answer.text if answer is not None else None,
                "score": made.scores.get(number),
            }
            lines.append(json.dumps(told) + "\n")
        return lines


def nothing_made(report: SynthesisReport) -> TrainingFailed:
    """The error of a synthesis without a row."""
    told = [
        f"{found.rows} {reason}" + (f" (the first: {found.first})" if found.first else "")
        for reason, found in sorted(report.dropped.items(), key=lambda one: -one[1].rows)
    ]
    return TrainingFailed(
        "nothing_made", f"no row could be made by {report.requests} requests: {', '.join(told)}"[:2000]
    )


def _check_grader(outcomes: Sequence[Outcome]) -> None:
    """Raises TrainingFailed where the grader has failed on every answer, whatever it says."""
    if outcomes and all(one.errors.names and one.errors.is_of_the_grader for one in outcomes):
        raise TrainingFailed(
            "grader_failed",
            f"the grader failed on all {len(outcomes)} answers, the first: {outcomes[0].errors.describe()[:500]}",
        )


def _keep_best(n: int, made: Made) -> None:
    """Of the answers to a row keep the one with the highest score; of equal ones the first."""
    best: dict[int, int] = {}
    for number in made.rows:
        other = best.setdefault(number // n, number)
        if made.scores[number] > made.scores[other]:
            best[number // n] = number
    for number in list(made.rows):
        kept = best[number // n]
        if number != kept:
            text = f"{made.scores[number]:g}, and another answer has {made.scores[kept]:g}"
            made.drop(number, Dropped("not_best", text))


def _answer(row: Row) -> str:
    return str(row["completion"] if "completion" in row else row["messages"][-1]["content"] or "")


def _item(asker: Answers, number: int) -> dict[str, Any]:
    prompt = asker.prompt(number)
    return {"asked": prompt.said(), "expected": prompt.expected, **(prompt.item or {})}
