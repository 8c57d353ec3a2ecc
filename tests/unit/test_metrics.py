"""The metrics of evaluations: equal to scikit-learn, sacrebleu, rouge-score and SQuAD's script."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tunewright.metrics.auto import choose
from tunewright.metrics.figures import OTHER, Measured, Scores, by_field, confusion, row_values, table
from tunewright.metrics.names import KINDS, METRICS, OF_OTHERS, OF_PROGRAMS, MetricName
from tunewright.metrics.structured import InvalidSchema, fits, parsed, validator_of
from tunewright.metrics.texts import exact_match, extracted, label, token_f1

REFERENCE = json.loads((Path(__file__).parent / "reference_metrics.json").read_text(encoding="utf-8"))


def value(metric: MetricName, pairs: list[tuple[str | None, str]], **options: object) -> float:
    measured = Measured([wanted for _, wanted in pairs], [said for said, _ in pairs], **options)  # type: ignore[arg-type]
    return table(metric, measured).value()


@pytest.mark.parametrize("metric", ["bleu", "chrf", "rouge1", "rouge2", "rougeL"])
def test_texts_are_scored_as_by_sacrebleu_and_rouge_score(metric: MetricName) -> None:
    for one in REFERENCE["texts"]:
        assert value(metric, one["pairs"]) == pytest.approx(one[metric], abs=1e-9), one["pairs"]


def test_labels_are_scored_as_by_scikit_learn() -> None:
    known = REFERENCE["labels"]
    pairs = list(zip(known["said"], known["wanted"], strict=True))
    for metric in ("accuracy", "macro_f1", "weighted_f1"):
        assert value(metric, pairs) == pytest.approx(known[metric], abs=1e-12)
    labels, counts = confusion(Measured(known["wanted"], known["said"]))
    assert labels == ["cat", "cow", "dog", "hen", OTHER]
    assert counts.tolist() == known["confusion"]


def squad_script(answer: str, expected: str) -> tuple[int, float]:
    """compute_exact and compute_f1 of SQuAD's evaluate-v2.0.py."""

    def normalize_answer(s: str) -> str:
        s = s.lower()
        s = "".join(ch for ch in s if ch not in set(string.punctuation))
        s = re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", s)
        return " ".join(s.split())

    def get_tokens(s: str) -> list[str]:
        return normalize_answer(s).split() if s else []

    gold, pred = get_tokens(expected), get_tokens(answer)
    exact = int(normalize_answer(expected) == normalize_answer(answer))
    common = Counter(gold) & Counter(pred)
    same = sum(common.values())
    if len(gold) == 0 or len(pred) == 0:
        return exact, float(int(gold == pred))
    if same == 0:
        return exact, 0.0
    precision, recall = 1.0 * same / len(pred), 1.0 * same / len(gold)
    return exact, (2 * precision * recall) / (precision + recall)


def test_short_answers_are_scored_as_by_the_script_of_squad() -> None:
    pairs = [
        ("the Eiffel Tower", "Eiffel tower."), ("", "no answer"), ("", ""), ("The", "a"), ("in Paris, France", "Paris"),
        ("An apple a day", "apple day"), ("42", "forty-two"), ("to be or not to be", "not to be"),
        *((said, wanted) for one in REFERENCE["texts"] for said, wanted in one["pairs"]),
    ]  # fmt: skip
    for said, wanted in pairs:
        exact, f1 = squad_script(said, wanted)
        assert (exact_match(said, wanted), token_f1(said, wanted)) == (exact, pytest.approx(f1)), (
            said,
            wanted,
        )


def test_a_row_without_an_answer_counts_as_wrong() -> None:
    pairs: list[tuple[str | None, str]] = [("yes", "yes"), (None, "no")]
    for metric in METRICS:
        if metric not in (
            "schema_valid",
            "field_accuracy",
            "bleu",
            "chrf",
            "perplexity",
            "token_accuracy",
            "rouge2",
            "judge",
            *OF_PROGRAMS,
            *OF_OTHERS,
        ):
            expected = 0.5 if KINDS[metric].is_share or metric.endswith(("f1", "L", "1")) else 0.0
            assert value(metric, pairs) == (0 if metric == "json_valid" else expected), metric


def test_of_a_text_the_part_that_was_asked_for_is_compared() -> None:
    assert extracted("So it is 3 + 4 = 1,007.50 dollars.\n#### 1,007.50", "last_number") == "1007.5"
    assert extracted("minus -0.0, or +012", "last_number") == "12"
    assert extracted("-3.10", "last_number") == "-3.1"
    assert extracted("-0", "last_number") == "0"
    assert extracted("no number", "last_number") == "no number"
    assert (extracted("\n a \n\n b\n", "first_line"), extracted("\n a \n\n b\n", "last_line")) == ("a", "b")
    assert extracted(" x\ny ", "whole") == "x\ny"
    assert (
        value("exact_match", [("I think: 18", "9 * 2 = <<9*2=18>>18\n#### 18")], extract="last_number") == 1
    )
    for said, wanted in (("It is 1.5", "#### 15"), ("So -5", "#### 5"), ("It has a 1", "#### 10")):
        assert value("exact_match", [(said, wanted)], extract="last_number") == 0, "each character counts"
    assert label(" Positive. ") == "positive"


def test_json_is_compared_field_by_field() -> None:
    wanted = '{"name": "Ann", "age": 31, "pets": [{"kind": "cat"}, {"kind": "dog"}], "ok": true}'
    said = '{"name": " Ann ", "age": 31.0, "pets": [{"kind": "cat"}, {"kind": "cow"}], "ok": 1, "more": 2}'
    said = f"```json\n{said}\n```"
    pairs: list[tuple[str | None, str]] = [(said, wanted), ("no JSON {", wanted), (None, wanted)]
    assert value("json_valid", pairs) == pytest.approx(1 / 3)
    assert value("field_accuracy", pairs) == pytest.approx(3 / 15)
    measured = Measured([wanted, wanted], [said, wanted])
    assert by_field(measured) == [("name", 2, 2), ("age", 2, 2), ("pets[].kind", 2, 1), ("ok", 2, 1)]
    assert table("field_accuracy", measured).value() == pytest.approx(8 / 10)


@pytest.mark.parametrize(
    "text", ["NaN", "[1, Infinity]", "{'a': 1}", "{}x", "", "```json\n{}\n```\nand more"]
)
def test_what_is_no_json(text: str) -> None:
    assert value("json_valid", [(text, "{}")]) == 0


def test_schemas_are_checked_and_fetch_nothing() -> None:
    validator = validator_of({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}})
    found = [("{}", "{}"), ('{"a": 1}', "{}"), ('{"a": "1"}', "{}"), ("x", "{}")]
    assert value("schema_valid", found, validator=validator) == 0.25  # type: ignore[arg-type]
    with pytest.raises(InvalidSchema, match="type"):
        validator_of({"type": "thing"})
    with pytest.raises(InvalidSchema, match=r"http://127\.0\.0\.1"):
        fits({}, validator_of({"$ref": "http://127.0.0.1:9/schema.json"}))
    assert fits(parsed("[1]"), validator_of({"$ref": "#/$defs/x", "$defs": {"x": {"type": "array"}}}))


def test_perplexity_and_token_accuracy_are_of_all_tokens() -> None:
    scores = [Scores(2.0, 4, 3), None, Scores(4.0, 2, 0)]
    measured = Measured(["a"] * 3, [None] * 3, scores)
    assert table("perplexity", measured).value() == pytest.approx(np.exp(1.0))
    assert table("token_accuracy", measured).value() == 0.5
    found = row_values("perplexity", table("perplexity", measured))
    assert found is not None
    assert found.tolist() == [
        pytest.approx(np.exp(0.5)),
        pytest.approx(np.nan, nan_ok=True),
        pytest.approx(np.exp(2)),
    ]


@pytest.mark.parametrize(
    ("expected", "metrics", "why"),
    [
        (["yes", "no", "Yes."] * 4, "accuracy", "2 labels"),
        (['{"a": 1}', '{"a": 2}'], "json_valid", "JSON object"),
        (["Paris", "the river Thames", "1969"], "exact_match", "at most"),
        (["word " * 30, "other words " * 20, "third"], "rougeL", "words or more"),
        (["same"] * 9, "exact_match", "at most"),
    ],
)
def test_metrics_are_chosen_by_the_form_of_the_answers(expected: list[str], metrics: str, why: str) -> None:
    choice = choose(expected)
    assert choice.metrics[0] == metrics
    assert why in choice.why


def test_with_a_schema_it_is_checked() -> None:
    assert choose(["{}"], has_schema=True).metrics == ("json_valid", "schema_valid", "field_accuracy")
