"""The criteria of parity, on made-up numbers."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tunewright.evaluate.compare import LARGEST_NOISE, Comparison, Mismatch, Row, Verdict, common, compare
from tunewright.evaluate.folder import ReferenceRow

NOISE = 0.02


def rows(*, effect: float = 1.0, served: float = 1.0, noise: float = NOISE, other: float = 0.0) -> list[Row]:
    """Eight rows in which the engine serves `served` times the effect, and `other` on top that peft does not have. Each
    of the four sources rounds by itself."""
    generator = random.Random(1)
    found = []
    for line in range(1, 9):
        row = Row(line, f"row {line}", [], [], [], 40, 40)
        for _ in range(200):
            change = generator.gauss(0, effect)
            base, adapted, engine_base, engine_adapted = (
                generator.gauss(0, noise / 2**0.5) for _ in range(4)
            )
            row.effect.append(change + adapted - base)
            row.answer.append(served * change + generator.gauss(0, other) + engine_adapted - engine_base)
            row.noise.append(engine_base - base)
        found.append(row)
    return found


def verdict(**changes: float) -> Verdict:
    return compare(rows(**changes), []).verdict


@pytest.mark.parametrize("effect", [4 * NOISE, 0.1, 1.0, 10.0])
def test_what_is_served_as_it_was_trained_passes(effect: float) -> None:
    found = compare(rows(effect=effect), [])
    assert found.verdict is Verdict.PASS
    assert found.slope == pytest.approx(1, abs=0.05)
    assert (found.rows, found.tokens, found.top1_agreement, found.worst_rows) == (8, 320, 1.0, [])
    assert f"slope {found.slope:.4f}" in found.reason


@pytest.mark.parametrize("served", [-1.0, 0.0, 0.5, 0.8, 1.5])
def test_another_strength_fails(served: float) -> None:
    assert verdict(served=served) is Verdict.FAIL


def test_other_weights_fail_although_both_change_as_much() -> None:
    assert verdict(served=0.0, other=1.0) is Verdict.FAIL


def test_a_slope_of_one_does_not_hide_what_is_different() -> None:
    found = compare(rows(other=0.4), [])
    assert found.slope == pytest.approx(1, abs=0.05)
    assert found.verdict is Verdict.FAIL


def test_another_base_fails_by_its_noise() -> None:
    found = compare(rows(noise=2 * LARGEST_NOISE), [])
    assert found.verdict is Verdict.FAIL
    assert "another base" in found.reason


def test_what_changes_less_than_the_noise_is_no_pass() -> None:
    assert verdict(effect=NOISE / 10) is Verdict.NO_MEASURABLE_EFFECT
    assert verdict(effect=NOISE) is Verdict.NO_MEASURABLE_EFFECT
    assert verdict(effect=2 * NOISE, served=0.5) is Verdict.NO_MEASURABLE_EFFECT
    assert verdict(effect=0.0) is Verdict.NO_MEASURABLE_EFFECT


def test_what_changes_nothing_in_peft_and_much_in_the_engine_fails() -> None:
    found = compare(rows(effect=0.0, other=1.0), [])
    assert (found.verdict, found.slope) == (Verdict.FAIL, None)


def test_a_prompt_that_is_another_fails_whatever_the_numbers_say() -> None:
    found: Comparison = compare(rows(), [Mismatch(3, "they differ from token 2 on")])
    assert found.verdict is Verdict.FAIL
    assert "they differ from token 2 on" in found.reason
    assert (found.worst_rows[0].line, found.worst_rows[0].reason) == (3, "they differ from token 2 on")


def test_rows_of_several_files_are_told_with_their_file() -> None:
    measured = [replace(row, file=f"file-{row.line % 2}", line=1 + row.line // 2) for row in rows()]
    found = compare(measured, [Mismatch(2, "they differ from token 2 on", "file-1")])
    assert "in line 2 of file-1 they differ" in found.reason
    reasons = {(row.file, row.line): row.reason for row in found.worst_rows}
    assert reasons.pop(("file-1", 2)) == "they differ from token 2 on"
    assert set(reasons.values()) == {None}, "line 2 of another file has no fault"


def test_the_rows_that_differ_most_are_told() -> None:
    measured = rows()
    bad = measured[4]
    measured[4] = Row(bad.line, bad.text, bad.effect, [value + 9 for value in bad.answer], bad.noise, 40, 0)
    found = compare(measured, [])
    assert found.verdict is Verdict.FAIL
    assert (found.worst_rows[0].line, found.worst_rows[0].text) == (5, "row 5")
    assert found.worst_rows[0].max_difference > found.worst_rows[1].max_difference
    assert found.top1_agreement == pytest.approx(7 / 8)


def test_only_tokens_that_all_four_told_are_compared() -> None:
    row = ReferenceRow(
        line=1, text="x", tokens=[1, 2], base=[{2: -1.0, 5: -2.0, 6: -3.0}], adapted=[{2: -0.5, 5: -2.5}]
    )
    found = common(row, [{2: -1.1, 5: -2.2, 7: -4.0}], [{2: -0.4, 5: -2.4, 6: -3.0}])
    assert sorted(found.effect) == pytest.approx([-0.5, 0.5])
    assert sorted(found.answer) == pytest.approx([-0.2, 0.7])
    assert (found.places, found.same_top) == (1, 1)


def test_numbers_that_overflow_fail_and_are_left_out_of_the_rest() -> None:
    row = ReferenceRow(
        line=1, text="x", tokens=[1, 2], base=[{2: -1.0, 5: -2.0}], adapted=[{2: float("nan"), 5: -2.5}]
    )
    found = compare([common(row, [{2: -1.0, 5: -2.0}], [{2: -0.5, 5: -2.5}])], [])
    assert (found.verdict, found.effect, found.residual) == (Verdict.FAIL, 0.5, 0.0)
    assert "overflow at 1 tokens" in found.reason
    nothing = compare([common(row, [{2: -1.0, 5: -2.0}], [{2: float("inf"), 5: float("nan")}])], [])
    assert (nothing.verdict, nothing.slope) == (Verdict.FAIL, None)


def test_without_rows_there_is_no_verdict() -> None:
    with pytest.raises(ValueError, match="no token"):
        compare([], [])
