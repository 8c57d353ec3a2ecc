"""Files tokenized in the process of the tests, which has imported transformers, and not in one of their own."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from tunewright.rows import lengths
from tunewright.rows.lengths import Answer, Question


def count_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do in this process what `python -m tunewright.rows.lengths` does, which imports for 5 s. The process itself is
    seen in test_plan_api, test_report_api and test_report."""
    monkeypatch.setattr(lengths, "quick_imports", nullcontext)
    monkeypatch.setattr(lengths, "limit_memory", lambda _: None)
    monkeypatch.setattr(lengths, "_answer", _answer)


def _answer(question: Question) -> Answer:
    answer = lengths._answered(Question.model_validate_json(question.model_dump_json()))
    return Answer.model_validate_json(answer.model_dump_json())
