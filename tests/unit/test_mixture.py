"""What `rows.mixture` promises of the epochs of several files with weights."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rows import resolved
from tunewright.config import embedded_base_path
from tunewright.jobs.folder import JobFolder
from tunewright.plan.data_shape import data_shape
from tunewright.plan.fitting import with_less_memory
from tunewright.plan.mixing import drawn, mixed_shape
from tunewright.rows.cache import TokenCache
from tunewright.rows.mixture import EpochOrder, Mixture, Part
from tunewright.rows.reading import Reading
from tunewright.rows.tokenized import tokenize_file
from tunewright.trainer.data import epoch_order, tokenized_files
from tunewright.trainer.spec import FurtherFile, TrainingSpec

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(str(embedded_base_path()))


def write(path: Path, words: list[int]) -> Path:
    rows = [
        {"prompt": f"{path.stem}{number} ", "completion": "a " * many} for number, many in enumerate(words)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def part(tmp_path: Path, tokenizer: Any) -> Any:
    def made(name: str, words: list[int], weight: float) -> Part:
        path = write(tmp_path / f"{name}.jsonl", words)
        cache = TokenCache(tmp_path / "tokens")
        return Part(name, tokenize_file(path, tokenizer, 512, cache=cache, key=name, source=name), weight)

    return made


def counts(mixture: Mixture, epochs: int) -> list[Counter[int]]:
    """How often each example of each file was there in so many epochs."""
    ends = np.cumsum([part.totals.examples for part in mixture.parts])
    found: list[Counter[int]] = [Counter() for _ in mixture.parts]
    for epoch in range(epochs):
        for index in mixture.epoch(epoch).tolist():
            found[int(np.searchsorted(ends, index, side="right"))][index] += 1
    return found


@pytest.mark.parametrize(
    ("weight", "rows", "many"),
    [(1, 7, 7), (2, 7, 14), (0.5, 7, 4), (0.5, 6, 3), (1.25, 10, 13), (0.001, 9, 1)],
)
def test_a_weight_says_how_many_of_a_files_rows_an_epoch_has(weight: float, rows: int, many: int) -> None:
    assert drawn(weight, rows) == many


def test_an_epoch_has_of_each_file_what_its_weight_says(part: Any) -> None:
    mixture = Mixture([part("a", [1] * 10, 1.0), part("b", [2] * 8, 2.0), part("c", [3] * 9, 0.5)], seed=7)
    once = counts(mixture, 1)
    assert [sum(one.values()) for one in once] == [10, 16, 5]
    assert mixture.examples == len(mixture.epoch(0)) == len(EpochOrder(mixture)) == 31
    assert set(once[0].values()) == {1}
    assert set(once[1].values()) == {2}
    assert set(once[2].values()) == {1}


def test_no_row_comes_again_before_all_others_of_its_file_came(part: Any) -> None:
    mixture = Mixture([part("a", [1] * 10, 0.5), part("b", [1] * 9, 0.3), part("c", [1] * 7, 1.5)], seed=7)
    for epochs in range(1, 8):
        for file, found in zip(mixture.parts, counts(mixture, epochs), strict=True):
            often = [found[index] for index in found] + [0] * (file.totals.examples - len(found))
            assert max(often) - min(often) <= 1, (file.name, epochs)
    halves = [set(mixture.epoch(epoch).tolist()) & set(range(10)) for epoch in (0, 1)]
    assert not halves[0] & halves[1]


def test_the_order_follows_from_seed_and_epoch_alone(part: Any) -> None:
    parts = [part("a", [1] * 20, 1.0), part("b", [1] * 20, 0.5)]
    mixture, again, other = Mixture(parts, 7), Mixture(parts, 7), Mixture(parts, 8)
    order = EpochOrder(again)
    order.set_epoch(3)
    assert list(order) == mixture.epoch(3).tolist()
    assert mixture.epoch(2).tolist() != mixture.epoch(3).tolist()
    assert mixture.epoch(3).tolist() != other.epoch(3).tolist()
    first_half = mixture.epoch(0)[:15]
    assert 0 < (first_half >= 20).sum() < 10, "the files are mixed within an epoch"


def test_the_numbers_of_an_order_are_those_of_the_data_set(part: Any) -> None:
    parts = [part("a", [1, 2, 3], 1.0), part("b", [40, 50], 2.0)]
    mixture = Mixture(parts, seed=1)
    rows = mixture.dataset()
    assert len(rows) == 5
    lengths = [len(rows[index]["input_ids"]) for index in range(5)]
    assert lengths == [*parts[0].lengths.tolist(), *parts[1].lengths.tolist()]
    assert min(lengths[3:]) > max(lengths[:3])
    assert set(rows[0]) == {"input_ids", "labels"}


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_the_tokens_that_are_told_are_those_that_are_trained_on(part: Any, epochs: int) -> None:
    mixture = Mixture([part("a", [1, 5, 9, 30], 0.7), part("b", list(range(1, 12)), 2.4)], seed=3)
    rows = mixture.dataset()
    trained = sum(len(rows[int(i)]["input_ids"]) for e in range(epochs) for i in mixture.epoch(e))
    assert mixture.tokens(epochs) == trained
    assert mixture.shape().tokens == pytest.approx(mixture.tokens(40) / 40, rel=0.05), (
        "the plan's, on average"
    )
    assert mixture.shape().examples == mixture.examples


def test_grouped_batches_have_rows_of_one_length_and_the_longest_comes_first(part: Any) -> None:
    words = np.random.default_rng(0).integers(1, 200, 203).tolist()
    mixture = Mixture([part("a", words, 1.0)], seed=3)
    rows, batch = mixture.parts[0].lengths, 4

    def padded(order: Any) -> int:
        batches = [rows[order[begin : begin + batch]] for begin in range(0, len(order), batch)]
        return int(sum(one.max() * len(one) for one in batches))

    plain, together = mixture.epoch(0), mixture.epoch(0, batch)
    assert sorted(together.tolist()) == sorted(plain.tolist())
    assert padded(together) < 1.1 * rows.sum() < padded(plain)
    assert rows[together[:batch]].max() == rows.max()
    assert together.tolist() != mixture.epoch(1, batch).tolist()
    steps = [rows[together[begin : begin + 32]].mean() for begin in range(0, 192, 32)]
    assert max(steps) < 2 * min(steps), "steps of several batches are not sorted by length"


def test_a_job_that_groups_by_length_has_grouped_batches(part: Any) -> None:
    mixture = Mixture([part("a", np.random.default_rng(0).integers(1, 200, 60).tolist(), 1.0)], seed=3)
    order = epoch_order(
        mixture, resolved().model_copy(update={"group_by_length": True, "per_device_batch_size": 4})
    )
    assert order is not None
    order.set_epoch(1)
    assert list(order) == mixture.epoch(1, 4).tolist() != mixture.epoch(1).tolist()


def test_a_job_that_goes_on_in_less_memory_has_the_order_with_which_it_began(part: Any) -> None:
    mixture = Mixture([part("a", np.random.default_rng(0).integers(1, 200, 60).tolist(), 1.0)], seed=3)
    update = {
        "group_by_length": True, "gradient_checkpointing": True, "batch_size": 8, "per_device_batch_size": 4,
    }  # fmt: skip
    before = resolved().model_copy(update=update)
    less = with_less_memory(before)
    assert less is not None
    least = with_less_memory(less)
    assert least is not None
    assert (less.per_device_batch_size, least.per_device_batch_size) == (2, 1)
    orders = [epoch_order(mixture, tuning) for tuning in (before, less, least)]
    assert list(orders[0] or ()) == list(orders[1] or ()) == list(orders[2] or ())


def test_a_file_of_which_no_row_is_held_out_is_trained_on_alone(tmp_path: Path, tokenizer: Any) -> None:
    many, few = write(tmp_path / "many.jsonl", [1] * 60), write(tmp_path / "few.jsonl", [2])
    share = {"held_out_share": 0.2}
    spec = TrainingSpec(
        job_id="one",
        base_name="tiny",
        base_path=str(embedded_base_path()),
        training_file=str(many),
        further_files=(FurtherFile(file=str(few), weight=3.0),),
        reading=Reading(part="training", **share),
        validation_file=str(many),
        validation_reading=Reading(part="held_out", **share),
        seed=1,
        device="cpu",
        tuning=resolved(),
    )
    training, held_out = tokenized_files(JobFolder(tmp_path / "job"), spec, tokenizer, lambda: None)
    assert held_out is not None
    assert [(one.name, one.drawn) for one in training.parts[1:]] == [("few.jsonl", 3)]
    assert [one.name for one in held_out.parts] == ["many.jsonl"]
    assert training.parts[0].totals.rows + held_out.parts[0].totals.rows == 60


def test_repeated_rows_are_no_more_data() -> None:
    few, many = data_shape(100, [(10, 5)] * 100), data_shape(1000, [(20, 10)] * 1000)
    epoch = mixed_shape([(few, 5.0), (many, 0.5)])
    assert (epoch.rows, epoch.examples, epoch.tokens) == (100 + 500, 500 + 500, 500 * 10 + 500 * 20)
    assert (epoch.tokens_within(15), epoch.cut_at(15), epoch.longest) == (500 * 10 + 500 * 15, 500, 20)
    assert mixed_shape([(few, 1.0)]) is few


def test_a_file_alone_with_the_weight_1_is_itself() -> None:
    one = SimpleNamespace(totals=SimpleNamespace(examples=5))
    assert Mixture([Part("a", one)], 1).is_plain  # type: ignore[arg-type]
    assert not Mixture([Part("a", one, 2.0)], 1).is_plain  # type: ignore[arg-type]
