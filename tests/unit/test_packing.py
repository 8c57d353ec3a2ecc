"""Packed rows see nothing of each other, and a run learns what it learns without packing."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from datasets import Dataset
from safetensors.torch import load_file
from tests.unit.test_training_options import STEPS, plain_script
from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM
from trl.data_utils import pack_dataset

from preferences import as_messages, assert_close, job_folder, text_rows, trained, trainer_of
from tiny import VOCABULARY, tiny_model, whole
from tunewright.config import embedded_base_path
from tunewright.jobs.failure import TrainingFailed
from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.rows.dataset import encoded_blocks, labels
from tunewright.trainer.packing import PackedCollator, check_isolation, packed, parts_of
from tunewright.trainer.run import METHODS
from tunewright.trainer.spec import TrainingSpec
from tunewright.trainer.training import train

pytestmark = pytest.mark.usefixtures("few_passages")

IGNORED = -100


def chat(row: dict[str, Any], words: int) -> dict[str, Any]:
    made = as_messages(row)
    answer = {"role": "assistant", "content": row["chosen"] + " Thanks." * words}
    return {"messages": [*made["prompt"], answer]}


ROWS = [chat(row, 5 * (n % 4)) for n, row in enumerate(text_rows(12))]
TEXTS = [{"text": row["prompt"] + row["chosen"] * (1 + n % 5)} for n, row in enumerate(text_rows(12))]


def folder_of(path: Path, rows: list[Any] = ROWS, **tuning: Any) -> JobFolder:
    options = {"weight_decay": 0.01, "per_device_batch_size": 2, **tuning}
    return job_folder(path / "job", rows, method="supervised", **options)


def steps(trainer: Any) -> list[tuple[float, float]]:
    return [(step["loss"], step["grad_norm"]) for step in trainer.state.log_history if "loss" in step]


def assert_alike(one: Any, other: Any) -> None:
    assert len(steps(one)) == STEPS
    for mine, theirs in zip(steps(one), steps(other), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    assert_close(trained(one.model), trained(other.model))


@pytest.mark.parametrize(
    ("rows", "at_a_time"), [pytest.param(ROWS, 1, marks=pytest.mark.soak), (ROWS, 2), (TEXTS, 2)]
)
def test_a_run_learns_what_a_plain_script_learns_of_rows_that_are_not_packed(
    tmp_path: Path, rows: list[Any], at_a_time: int
) -> None:
    folder = folder_of(tmp_path, rows, packing=True, per_device_batch_size=at_a_time)
    ours = trainer_of(folder)
    ours.train()
    assert_alike(ours, plain_script(folder, ours.train_dataset))


@pytest.mark.parametrize(("rows", "at_a_time"), [(ROWS, 1), (ROWS, 8), (TEXTS, 2)])
def test_a_step_has_the_loss_and_the_gradients_of_its_rows_one_by_one(
    tmp_path: Path, rows: list[Any], at_a_time: int
) -> None:
    ours = trainer_of(folder_of(tmp_path, rows, packing=True, per_device_batch_size=at_a_time, batch_size=8))
    step = [ours.train_dataset[n] for n in range(8)]
    model = ours.model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # with zeros nothing would reach A
                parameter += torch.randn_like(parameter) * 0.02
    alone = [
        model(
            input_ids=torch.tensor([row["input_ids"]]),
            labels=torch.tensor([row["labels"]]),
            fused_lm_head=True,
        )
        for row in step
    ]
    tokens = sum(int(one.label_mask.sum()) for one in alone)
    expected = -sum(one.log_probs.sum() for one in alone) / tokens
    expected.backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.requires_grad}
    model.zero_grad()

    batch = PackedCollator(0)(step)
    counted = ours._get_num_items_in_batch([batch], torch.device("cpu"))
    loss = ours.training_step(model, batch, num_items_in_batch=counted)

    assert int(counted) == tokens
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for name, one in gradients.items():
        found = dict(model.named_parameters())[name].grad
        torch.testing.assert_close(found, one, atol=1e-5, rtol=1e-4)


def test_a_step_computes_fewer_sequences_and_less_padding(tmp_path: Path) -> None:
    ours = trainer_of(folder_of(tmp_path, packing=True))
    loader = ours.get_train_dataloader()
    batches = list(loader)
    assert len(batches) == STEPS // 2
    sequences = [len(batch["input_ids"]) for batch in batches]
    assert max(sequences) < 4, "of four rows"
    for batch in batches:
        rows = batch["position_ids"].eq(0) & batch["attention_mask"].bool()
        assert int(rows.sum()) == 4
        assert bool((batch["labels"][batch["position_ids"] == 0] == IGNORED).all())
    assert {tuple(batch["labels"].shape) for batch in ours.get_eval_dataloader(ours.train_dataset)} != set()


def test_held_out_rows_are_measured_as_without_packing(tmp_path: Path) -> None:
    options: dict[str, Any] = {"method": "supervised", "per_device_batch_size": 2}
    with_packing = trainer_of(job_folder(tmp_path / "one" / "job", ROWS, ROWS[:5], packing=True, **options))
    without = trainer_of(job_folder(tmp_path / "other" / "job", ROWS, ROWS[:5], **options))
    assert with_packing.evaluate()["eval_loss"] == without.evaluate()["eval_loss"]


def test_a_run_that_goes_on_from_a_checkpoint_ends_as_one_that_was_not_disturbed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, packing=True)
    spec = folder.read_spec(TrainingSpec)
    assert train(folder, spec, EventLog(folder), METHODS["supervised"]) is not None
    product = load_file(folder.adapter / "adapter_model.safetensors")
    shutil.rmtree(folder.checkpoints / f"step-{STEPS}")
    shutil.rmtree(folder.adapter)

    assert train(folder, spec, EventLog(folder), METHODS["supervised"]) is not None

    again = load_file(folder.adapter / "adapter_model.safetensors")
    assert all(torch.equal(one, again[name]) for name, one in product.items()), "bit for bit"


def test_rows_are_laid_out_as_trl_lays_them_out() -> None:
    chance = random.Random(1)
    for _ in range(30):
        width = chance.randint(8, 64)
        lengths = [chance.randint(1, width) for _ in range(chance.randint(1, 60))]
        theirs = pack_dataset(Dataset.from_dict({"input_ids": [[0] * n for n in lengths]}), width, "bfd")
        ours = packed(lengths, width)
        assert sorted(row for one in ours for row in one) == list(range(len(lengths)))
        assert sorted(sorted(lengths[row] for row in one) for one in ours) == sorted(
            sorted(one) for one in theirs["seq_lengths"]
        )


FAMILIES = [
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3_text",
    "phi3",
    "stablelm",
    "olmo2",
    "gpt2",
    "mixtral",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_row_has_the_logits_that_it_has_alone(tmp_path: Path, family: str) -> None:
    model = whole(tiny_model(tmp_path / family, family))
    chance = torch.Generator().manual_seed(4)
    rows = [torch.randint(4, VOCABULARY, (n,), generator=chance).tolist() for n in (19, 7, 11, 5, 3)]
    batch = PackedCollator(0)([{"input_ids": row, "labels": row} for row in rows])
    assert len(batch["input_ids"]) == 3
    with torch.no_grad():
        made = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        for row in rows:
            alone = model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
            number, begin = next(
                (n, at)
                for n, ids in enumerate(batch["input_ids"].tolist())
                for at in range(len(ids))
                if ids[at : at + len(row)] == row and int(batch["position_ids"][n, at]) == 0
            )
            torch.testing.assert_close(made[number, begin : begin + len(row)], alone, atol=1e-4, rtol=1e-4)
    check_isolation(model, "tiny")


@pytest.mark.parametrize("family", ["opt", "mamba"])
def test_a_model_whose_rows_see_each_other_is_refused(tmp_path: Path, family: str) -> None:
    if family == "mamba":  # its states go on through a sequence
        model: Any = MambaForCausalLM(
            MambaConfig(vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, state_size=8)
        )
    else:  # it takes its positions from a mask
        model = whole(tiny_model(tmp_path / family, family))
    with pytest.raises(TrainingFailed, match=r"see each other in tiny: leave tuning\.packing out"):
        check_isolation(model, "tiny")


def test_for_flash_attention_a_part_is_one_sequence_without_padding() -> None:
    rows = [{"input_ids": list(range(10 * n, 10 * n + n)), "labels": [1] * n} for n in (6, 4, 3)]
    batch = PackedCollator(0)(rows)
    flat = list(parts_of(batch, 8, flat=True))
    assert len(flat) == 1
    assert "attention_mask" not in flat[0]
    assert flat[0]["input_ids"].shape == (1, 13)
    assert sorted(flat[0]["position_ids"][0].tolist()) == sorted([*range(6), *range(4), *range(3)])
    assert int((flat[0]["labels"] == IGNORED).sum()) == 3


def test_long_texts_are_split_and_every_token_is_learnt_once(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_base_path())
    text = "The quick brown fox jumps over the lazy dog, and then it sleeps. " * 9
    file = tmp_path / "texts.jsonl"
    file.write_text(f'{{"text": "{text}"}}\n{{"text": "Short."}}\n')
    whole_ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    for length in (8, 16, 33, len(whole_ids) - 1, len(whole_ids), len(whole_ids) + 1):
        (block,) = encoded_blocks(file, tokenizer, length, splits=True)
        pieces = [
            (list(ids), labels(list(ids), list(edges)))
            for ids, edges in zip(block.ids, block.edges, strict=True)
        ]
        *long, short = pieces
        assert all(len(ids) <= length for ids, _ in long)
        learnt = [token for _, found in long for token in found[1:]]
        assert learnt == whole_ids[1:], "behind the first, which nothing precedes"
        assert (block.truncated, block.lost) == (0, 0)
        assert short[0][-1] == tokenizer.eos_token_id
        assert [ids.count(tokenizer.eos_token_id) for ids, _ in pieces] == [0] * (len(long) - 1) + [1, 1]


def test_rows_with_a_prompt_are_not_split(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_base_path())
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"prompt": "Say it: ", "completion": "one two three four five six seven eight nine ten"}\n'
    )
    (split,) = encoded_blocks(file, tokenizer, 10, splits=True)
    (cut,) = encoded_blocks(file, tokenizer, 10)
    assert [list(ids) for ids in split.ids] == [list(ids) for ids in cut.ids]
    assert split.truncated == 1
