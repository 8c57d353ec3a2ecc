"""Pairs of answers are tokenized as supervised rows are, cut and left out by a stated rule, and read from the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

transformers = pytest.importorskip("transformers")

from preferences import as_messages, as_openai, text_rows, write  # noqa: E402
from tunewright.config import embedded_base_path  # noqa: E402
from tunewright.jobs.failure import TrainingFailed  # noqa: E402
from tunewright.rows import dataset  # noqa: E402
from tunewright.rows.cache import TokenCache  # noqa: E402
from tunewright.rows.canonical import with_answer  # noqa: E402
from tunewright.rows.dataset import RowEncoder  # noqa: E402
from tunewright.rows.examples import Pair, UnusableRow, encode_text  # noqa: E402
from tunewright.rows.formats import read_rows  # noqa: E402
from tunewright.rows.probes import rows_or_probes  # noqa: E402
from tunewright.rows.sources import Source  # noqa: E402
from tunewright.rows.tokenized import TokenizedFile, tokenize_file  # noqa: E402

REWRITING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}(said){% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Writes an earlier answer in other words than when it was given."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(embedded_base_path())


def tokenized(
    tmp_path: Path, tokenizer: Any, rows: list[Any], max_length: int = 512, **more: Any
) -> TokenizedFile:
    path = write(tmp_path / "rows.jsonl", rows)
    cache = TokenCache(tmp_path / "cache")
    return tokenize_file(path, tokenizer, max_length, cache=cache, key="k", source="s", **more)


def talk(*answer: dict[str, Any], other: str = "No.") -> dict[str, Any]:
    return {
        "prompt": [
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "Well?"},
            {"role": "user", "content": "Call it."},
        ],
        "chosen": list(answer),
        "rejected": [{"role": "assistant", "content": other}],
    }


@pytest.mark.parametrize("form", [as_openai, as_messages, dict])
def test_each_answer_has_the_tokens_and_the_labels_of_a_supervised_row(
    tmp_path: Path, tokenizer: Any, form: Any
) -> None:
    file = tokenized(tmp_path, tokenizer, [form(row) for row in text_rows(5)])
    encoder = RowEncoder(tokenizer)
    rows = [row for _, row in read_rows(tmp_path / "rows.jsonl")]

    for row, pair in zip(rows, file.dataset(), strict=True):
        for name in ("chosen", "rejected"):
            (example,) = encoder.supervised(with_answer(row, name))
            assert pair[f"{name}_ids"] == example.input_ids
            assert pair[f"{name}_labels"] == example.labels
        assert pair["chosen_labels"][-1] == tokenizer.eos_token_id, "the end of the answer is learnt"


def test_totals_count_both_sequences_of_a_pair(tmp_path: Path, tokenizer: Any) -> None:
    file = tokenized(tmp_path, tokenizer, text_rows(5))
    pairs = list(file.dataset())
    lengths = [len(pair[f"{name}_ids"]) for pair in pairs for name in ("chosen", "rejected")]

    totals = file.totals
    assert (totals.rows, totals.examples, totals.per_example) == (5, 5, 2)
    assert (totals.tokens, totals.longest) == (sum(lengths), max(lengths))
    assert sum(totals.whole_lengths.values()) == 10
    assert totals.describe() == f"5 pairs, {sum(lengths)} tokens"


def test_pairs_are_cut_and_those_without_a_difference_are_left_out(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"prompt": "a b c", "chosen": " x y", "rejected": " z"},
        {"prompt": "a", "chosen": " x" * 30, "rejected": " z"},
        {"prompt": "a", "chosen": " x", "rejected": " x"},
        {"prompt": "a", "chosen": " x" * 30, "rejected": " x" * 40},
        {"prompt": "a" + " b" * 40, "chosen": " x", "rejected": " z"},
    ]
    file = tokenized(tmp_path, tokenizer, rows, max_length=9)

    totals = file.totals
    assert (totals.rows, totals.examples, totals.truncated) == (5, 2, 3)
    assert (totals.dropped, totals.identical) == (3, 2)
    assert [pair["rejected_ids"] for pair in file.dataset()] == [
        encode_text(tokenizer, row["prompt"], row["rejected"]).input_ids for row in rows[:2]
    ]
    assert len(list(file.dataset())[1]["chosen_ids"]) == 9
    assert "2 left out (both answers are the same tokens" in totals.describe()
    assert "1 left out (nothing to learn" in totals.describe()
    with pytest.raises(TrainingFailed, match="line 2 has") as told:
        tokenized(tmp_path / "again", tokenizer, rows, max_length=9, truncation="refuse")
    assert told.value.code == "row_too_long"


def test_a_file_of_pairs_without_a_difference_says_so(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(TrainingFailed, match="both answers are the same within") as told:
        tokenized(tmp_path, tokenizer, [{"prompt": "a", "chosen": "b", "rejected": "b"}])
    assert told.value.code == "invalid_training_file"


def test_processes_encode_the_same_pairs(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [as_openai(row) for row in text_rows(150)]
    alone = tokenized(tmp_path / "alone", tokenizer, rows)
    monkeypatch.setattr(dataset, "_LARGE", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    together = tokenized(tmp_path / "together", tokenizer, rows)

    assert list(together.dataset()) == list(alone.dataset())
    assert together.totals == alone.totals


def test_what_the_assistant_said_before_is_context(tokenizer: Any) -> None:
    (pair,) = RowEncoder(tokenizer).encoded(talk({"role": "assistant", "content": "Yes."}))
    assert isinstance(pair, Pair)
    said = [token for token in pair.chosen.labels if token >= 0]
    assert tokenizer.decode(said) == "Yes.<|im_end|>"


def test_an_answer_may_call_a_tool_and_what_the_tool_says_is_context(tokenizer: Any) -> None:
    row = talk(
        {"role": "assistant", "content": "A."},
        {"role": "user", "content": "Then?"},
        {"role": "assistant", "content": "B."},
    )
    (pair,) = RowEncoder(tokenizer).encoded(row)
    assert isinstance(pair, Pair)
    learnt = tokenizer.decode([token for token in pair.chosen.labels if token >= 0])
    assert learnt == "A.<|im_end|>B.<|im_end|>"


def test_an_answer_that_a_template_writes_anew_is_refused_with_what_to_do() -> None:
    rewriting = transformers.AutoTokenizer.from_pretrained(embedded_base_path())
    rewriting.chat_template = REWRITING
    row = talk(
        {"role": "assistant", "content": "A."},
        {"role": "user", "content": "Then?"},
        {"role": "assistant", "content": "B."},
    )
    with pytest.raises(UnusableRow, match=r"the chosen answer has several messages.*use one message"):
        RowEncoder(rewriting).encoded(row)


def test_rows_to_measure_on_have_the_better_answer(tmp_path: Path) -> None:
    rows = text_rows(2)
    path = write(tmp_path / "rows.jsonl", rows)
    made = list(rows_or_probes([Source(file=str(path))], as_chat=True))
    assert made == [
        ("rows.jsonl", line, {"prompt": row["prompt"], "completion": row["chosen"]})
        for line, row in enumerate(rows, 1)
    ]
    assert json.dumps(made)
