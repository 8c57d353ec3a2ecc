"""Suites are asked as lm-evaluation-harness asks them, and what is forgotten is judged with its uncertainty."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from suites import HUMANEVAL, write_lines, write_suites
from tunewright.evaluator.folder import Asked, EvaluationSpec
from tunewright.evaluator.forgetting import forgotten
from tunewright.evaluator.programs import NotRun, passes
from tunewright.evaluator.suites import SUITES, SuiteQuestion, last_number
from tunewright.metrics.figures import pass_at_k
from tunewright.metrics.intervals import Table, means, relative_drop
from tunewright.metrics.names import SuiteName
from tunewright.metrics.texts import label
from tunewright.metrics.verdicts import Verdict
from tunewright.rows.faults import InvalidData

REFERENCE: dict[str, Any] = json.loads((Path(__file__).parent / "reference_suites.json").read_text())
ASKED = [(name, int(shots)) for name in SUITES for shots in REFERENCE[name]]


@pytest.mark.parametrize(("name", "shots"), ASKED)
def test_questions_are_those_of_lm_evaluation_harness(tmp_path: Path, name: SuiteName, shots: int) -> None:
    found = SUITES[name].questions(write_suites(tmp_path), shots)

    assert [next(one.forms())["prompt"] for one in found] == REFERENCE[name][str(shots)]
    assert [one.place for one in found] == list(range(1, len(found) + 1))


def test_expected_answers(tmp_path: Path) -> None:
    data = write_suites(tmp_path)

    def expected(name: SuiteName) -> list[str]:
        return [one.expected for one in SUITES[name].questions(data, None)]

    assert (expected("mmlu"), expected("ceval")) == (["A", "B", "A"], ["B"])
    assert expected("gsm8k") == ["3", "10000"]


def test_numbers_are_right_where_lm_evaluation_harness_finds_them_right() -> None:
    differ = [
        (answer, wanted, is_right)
        for answer, wanted, is_right in REFERENCE["answers"]
        if (label(last_number(answer)) == label(last_number(wanted))) is not is_right
    ]

    assert differ == []
    assert {is_right for _, _, is_right in REFERENCE["answers"]} == {True, False}


def test_a_question_is_asked_with_as_many_examples_as_there_is_room_for(tmp_path: Path) -> None:
    question = SUITES["mmlu"].questions(write_suites(tmp_path), 3)[0]

    forms = [form["prompt"] for form in question.forms()]

    assert [form.count("Answer:") for form in forms] == [4, 3, 2, 1]
    assert all(form.startswith("The following are multiple choice questions") for form in forms)
    assert all("Where is the femur?" in form for form in forms[:3]), "the first examples are left out first"


def test_files_that_are_missing_or_not_as_expected_are_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"no mmlu/dev/\*_dev\.csv"):
        SUITES["mmlu"].questions(tmp_path, None)
    write_suites(tmp_path)
    (tmp_path / "mmlu" / "test" / "anatomy_test.csv").write_text("a,b,c,d,e,E\n")
    with pytest.raises(InvalidData, match="none of A, B, C and D"):
        SUITES["mmlu"].questions(tmp_path, None)
    write_lines(tmp_path / "gsm8k" / "test.jsonl", [{"question": "x"}])
    with pytest.raises(InvalidData, match="gsm8k are not as expected: KeyError"):
        SUITES["gsm8k"].questions(tmp_path, None)
    write_lines(tmp_path / "humaneval" / "HumanEval.jsonl", [])
    with pytest.raises(InvalidData, match="no question"):
        SUITES["humaneval"].questions(tmp_path, None)


def test_the_hash_is_of_all_files_of_the_suite_alone(tmp_path: Path) -> None:
    write_suites(tmp_path)
    before = SUITES["mmlu"].sha256(tmp_path)
    write_lines(tmp_path / "gsm8k" / "test.jsonl", [])

    assert SUITES["mmlu"].sha256(tmp_path) == before
    dev = tmp_path / "mmlu" / "dev" / "anatomy_dev.csv"
    dev.write_text(dev.read_text() + "a,b,c,d,e,A\n")
    assert SUITES["mmlu"].sha256(tmp_path) != before


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples(n: int) -> None:
    for right, k in itertools.product(range(n + 1), range(1, n + 1)):
        drawn = list(itertools.combinations([True] * right + [False] * (n - right), k))
        assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, drawn)) / len(drawn)), (n, right, k)
    assert pass_at_k(0, 0, 1) == 0.0, "no answer"


def program(number: int) -> SuiteQuestion:
    row = HUMANEVAL[number]
    return SuiteQuestion(1, "", prompt=row["prompt"], test=f"{row['test']}\ncheck({row['entry_point']})\n")


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("    return a + b\n", True),
        ("    return a - b\n", False),
        ("    return a +\n", False),
        ("    import sys; sys.exit(0)\n", False),
        ("    import os; os._exit(0)\n", False),
        ("    raise SystemExit\n", False),
        ("    while True: pass\n", False),
        ("    return a + b\n\nimport socket\nsocket.socket()\n", False),
        ("    return a + b\n\nopen('/etc/passwd')\n", False),
    ],
)
def test_a_program_is_right_where_its_tests_pass_in_the_sandbox(answer: str, is_right: bool) -> None:
    assert passes(program(0), answer, "sandboxed") is is_right


def test_a_program_is_not_run_where_the_operator_does_not_allow_it() -> None:
    with pytest.raises(NotRun):
        passes(program(0), "    return a + b\n", "off")


# what is forgotten


def spec(seed: int = 0) -> EvaluationSpec:
    models = [Asked(name=name, content=name, at_once=1) for name in ("new", "base")]
    return EvaluationSpec(
        job_id="eval-1", socket="/s", request_timeout=1, models=models, file=None, seed=seed, max_tokens=1,
        memory_bytes=1,
    )  # fmt: skip


def shares(rows: int, ours: float, theirs: float) -> list[Table]:
    """Two models that have so many of the questions right, the same ones as far as they can."""
    return [means(np.arange(rows) < round(share * rows), is_share=True) for share in (ours, theirs)]


@pytest.mark.parametrize(
    ("name", "rows", "ours", "theirs", "verdict"),
    [
        ("mmlu", 4000, 0.59, 0.60, Verdict.PASS),
        ("mmlu", 4000, 0.50, 0.60, Verdict.FAIL),
        ("mmlu", 4000, 0.57, 0.60, Verdict.NOT_ENOUGH_DATA),  # a drop of 5 % is the limit itself
        ("gsm8k", 4000, 0.57, 0.60, Verdict.PASS),
        ("gsm8k", 4000, 0.50, 0.60, Verdict.FAIL),
        ("mmlu", 100, 0.58, 0.60, Verdict.NOT_ENOUGH_DATA),
        ("mmlu", 29, 0.0, 1.0, Verdict.NOT_ENOUGH_DATA),
        ("mmlu", 4000, 0.20, 0.25, Verdict.NOT_ENOUGH_DATA),  # by chance
        ("gsm8k", 4000, 0.0, 0.0, Verdict.NOT_ENOUGH_DATA),
    ],
)
def test_the_verdict_is_by_the_whole_interval_of_the_relative_drop(
    name: str, rows: int, ours: float, theirs: float, verdict: Verdict
) -> None:
    [reason] = forgotten(SUITES[cast(SuiteName, name)], spec(), shares(rows, ours, theirs))

    assert (reason.verdict, reason.against, reason.name) == (verdict, "base", "forgetting")
    assert reason.limit == (0.05 if name == "mmlu" else 0.10)


def test_without_another_model_nothing_is_judged() -> None:
    alone = spec().model_copy(update={"models": spec().models[:1]})

    assert forgotten(SUITES["mmlu"], alone, shares(100, 0.5, 0.5)[:1]) == []


def test_the_interval_of_the_relative_drop_covers_it() -> None:
    random = np.random.default_rng(0)
    rows, covered, trials = 200, 0, 300
    for trial in range(trials):
        base = random.random(rows) < 0.6
        ours = np.where(base, random.random(rows) < 0.85, random.random(rows) < 0.1)
        true = 1 - (0.6 * 0.85 + 0.4 * 0.1) / 0.6
        _, low, high = relative_drop(means(ours), means(base), seed=trial, samples=500)
        covered += low <= true <= high
    assert 0.915 <= covered / trials <= 0.985
