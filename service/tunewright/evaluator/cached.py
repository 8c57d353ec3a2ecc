"""Answers of bases to suites, which evaluations share: a file for each base, suite, and way of asking (`Asked.cache`),
which is written when all is answered."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from tunewright.atomic import write_atomically
from tunewright.evaluator.asking import AnswersFile, Kept, Task
from tunewright.evaluator.folder import EvaluationSpec
from tunewright.evaluator.questions import Question

MOST_FILES = 100
"""Files that are kept, those that were written last."""
log = logging.getLogger("tunewright.evaluator")


def take_cached(
    spec: EvaluationSpec, rows: Sequence[Question], tasks: Sequence[Task], answers: AnswersFile
) -> None:
    """Take over what other evaluations have kept of the models."""
    for number, model in enumerate(spec.models):
        if model.cache is None or any((number, 0, task) in answers.kept for task in tasks):
            continue
        try:
            found = [json.loads(line) for line in Path(model.cache).read_text().splitlines()]
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            log.warning("%s is not used: %s", model.cache, error)
            continue
        places = {row.place: at for at, row in enumerate(rows)}
        for place, task, kept in found:
            if place in places and task in tasks:
                answers.keep((number, places[place], task), Kept.of(kept))


def keep_cached(
    spec: EvaluationSpec, rows: Sequence[Question], tasks: Sequence[Task], answers: AnswersFile
) -> None:
    """Keep the answers for other evaluations, where every row has one."""
    for number, model in enumerate(spec.models):
        if model.cache is None or Path(model.cache).exists():
            continue
        found = [
            (row.place, task, answers.kept[number, at, task]) for at, row in enumerate(rows) for task in tasks
        ]
        if any(kept.error is not None for _, _, kept in found):
            continue
        file = Path(model.cache)
        try:
            file.parent.mkdir(mode=0o700, exist_ok=True)
            write_atomically(
                file, "".join(json.dumps([place, task, kept.as_json()]) + "\n" for place, task, kept in found)
            )
            for old in sorted(file.parent.glob("*.jsonl"), key=lambda one: one.stat().st_mtime)[:-MOST_FILES]:
                old.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the answers of %s are not kept: %s", model.name, error)
