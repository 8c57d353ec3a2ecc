"""The divergence of a trained model on general text: what it is, of which models, and what is warned of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerControl

from forked import start_trainer
from preferences import job_folder, trainer_of
from tiny import tiny_adapter
from tunewright.config import embedded_base_path
from tunewright.jobs.folder import JobFolder
from tunewright.plan.forgetting import BOUND, Forgetting, has_forgotten
from tunewright.trainer.general_text import GeneralText, _compared, _passage, batches, encoded, forgetting
from tunewright.trainer.spec import TrainingResult

BASE = embedded_base_path()
ROWS = [
    {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"It is {n}."}]}
    for n in range(16)
]


def exact(before: torch.Tensor, now: torch.Tensor) -> float:
    theirs, ours = before.double().log_softmax(-1), now.double().log_softmax(-1)
    return float((theirs.exp() * (theirs - ours)).sum())


@pytest.mark.parametrize(("vocabulary", "is_exact"), [(100, True), (2000, False)])
def test_the_divergence_is_that_of_the_whole_distributions_or_just_below(
    vocabulary: int, is_exact: bool
) -> None:
    torch.manual_seed(0)
    before = 3 * torch.randn(50, vocabulary)
    now = before + torch.randn(50, vocabulary)
    row = torch.randint(0, vocabulary, (50,))

    kl, loss, loss_before, tokens = _compared(_passage(row, before), row, now)

    if is_exact:
        assert kl == pytest.approx(exact(before, now), rel=1e-4)
    else:
        assert 0.6 * exact(before, now) < kl <= exact(before, now)
    assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(now, row, reduction="sum")))
    assert loss_before == pytest.approx(
        float(torch.nn.functional.cross_entropy(before, row, reduction="sum"))
    )
    assert tokens == 50


def test_passages_are_computed_together_as_many_as_are_no_longer_than_the_longest_may_be() -> None:
    rows = encoded(AutoTokenizer.from_pretrained(BASE), 1024)
    found = list(batches(rows))
    assert [row for group in found for row in group] == rows
    assert all(len(group) * max(map(len, group)) <= 512 for group in found)
    assert len(found) < len(rows) / 3


def measured(
    folder: JobFolder, tokens_of_an_epoch: int = 10**6
) -> tuple[GeneralText, Any, list[dict[str, float]]]:
    """The callback of the job's trainer, before the first step."""
    trainer, found = trainer_of(folder), list[dict[str, float]]()
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    callback = GeneralText(
        trainer, tokenizer, folder, found.append, lambda: folder.beat(), tokens_of_an_epoch=tokens_of_an_epoch
    )
    callback.on_train_begin(trainer.args, trainer.state, TrainerControl())
    return callback, trainer, found


def by_hand(before: Any, now: Any) -> tuple[float, float]:
    """KL and loss per token over the text, of two whole models."""
    kl = loss = tokens = 0.0
    for row in encoded(AutoTokenizer.from_pretrained(BASE), 1024):
        ids = torch.tensor([row])
        with torch.no_grad():
            first, second = before(ids).logits[0, :-1], now(ids).logits[0, :-1]
        kl += exact(first, second)
        loss += float(torch.nn.functional.cross_entropy(second, ids[0, 1:], reduction="sum"))
        tokens += len(row) - 1
    return kl / tokens, loss / tokens


def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()


def test_a_new_adapter_has_changed_nothing_and_a_changed_one_is_compared_with_the_base(
    tmp_path: Path,
) -> None:
    parent = tiny_adapter(tmp_path / "parent", BASE, r=8, target_modules="all-linear")
    new, _, _ = measured(job_folder(tmp_path / "new" / "job", ROWS, method="supervised"))
    callback, trainer, found = measured(
        job_folder(tmp_path / "job", ROWS, method="supervised", spec={"parent_adapter": str(parent)}, rank=8)
    )

    unchanged, changed = new.measure(), callback.measure()

    assert unchanged is not None
    assert changed is not None
    assert unchanged.kl == pytest.approx(0.0, abs=1e-6)
    assert unchanged.loss == pytest.approx(unchanged.loss_before)
    kl, loss = by_hand(base(), PeftModel.from_pretrained(base(), parent).eval())
    assert kl > 0.1
    assert 0.8 * kl < changed.kl <= kl
    assert changed.loss == pytest.approx(loss, rel=1e-4)
    assert changed.low < changed.kl < changed.high
    assert found == [{"general_kl": changed.kl, "general_loss": changed.loss}]
    assert trainer.model.training, "it is as it was"
    assert trainer.model.active_adapter == "default"


def test_a_whole_model_is_compared_with_what_it_was_also_by_a_process_that_resumes(tmp_path: Path) -> None:
    folder = job_folder(tmp_path / "job", ROWS, method="supervised", type="full", learning_rate=1e-4)
    callback, trainer, _ = measured(folder)
    before = base()
    torch.manual_seed(1)
    for one in trainer.model.parameters():
        one.data += 0.02 * torch.randn_like(one)
    changed = callback.measure()

    again, resumed, _ = measured(folder)  # reads what the model was
    resumed.model.load_state_dict(trainer.model.state_dict())

    assert changed is not None
    kl, loss = by_hand(before, trainer.model.eval())
    assert 0.8 * kl < changed.kl <= kl
    assert changed.loss == pytest.approx(loss, rel=1e-4)
    assert again.measure() == changed


def test_where_it_is_not_known_what_the_model_was_nothing_is_told(tmp_path: Path) -> None:
    folder = job_folder(tmp_path / "job", ROWS, method="supervised", type="full", learning_rate=1e-4)
    trainer = trainer_of(folder)
    trainer.state.global_step = 3  # resumed, and what an earlier version began has no such file
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    callback = GeneralText(trainer, tokenizer, folder, lambda _: None, lambda: None, tokens_of_an_epoch=0)

    callback.on_train_begin(trainer.args, trainer.state, TrainerControl())

    assert callback.measure() is None


def test_a_model_whose_weights_are_no_numbers_has_no_divergence(tmp_path: Path) -> None:
    callback, trainer, found = measured(job_folder(tmp_path / "job", ROWS, method="supervised"))
    next(one for name, one in trainer.model.named_parameters() if "lora_B" in name).data.fill_(float("nan"))

    assert callback.measure() is None
    assert found == []


def test_the_interval_covers_the_divergence_of_the_text_that_passages_are_drawn_of() -> None:
    random = np.random.default_rng(0)
    covered, trials = 0, 300
    for _ in range(trials):
        tokens = random.integers(20, 80, 46).astype(float)
        kl = tokens * random.gamma(2.0, 0.1, 46)  # 0.2 a token on average
        found = forgetting(np.stack([kl, kl, kl, tokens], 1))
        covered += found.low <= 0.2 <= found.high
    assert 0.90 <= covered / trials <= 0.99


def test_only_what_is_beyond_the_bound_is_warned_of() -> None:
    numbers: dict[str, Any] = {"low": 0.0, "high": 9.0, "loss": 1.0, "loss_before": 1.0, "tokens": 10}

    assert has_forgotten(Forgetting(kl=BOUND, **numbers)) is None
    warning = has_forgotten(Forgetting(kl=BOUND + 0.01, **numbers))

    assert warning is not None
    assert "learning rate" in warning
    assert "general_kl" in warning


def test_an_epoch_that_is_long_enough_is_measured_at_its_end(tmp_path: Path) -> None:
    """The text has 4,276 tokens: of 16 rows an epoch has a few hundred, and would take less time than the pass."""
    for tokens, times in ((42_759, 0), (42_760, 1)):
        folder = job_folder(tmp_path / f"{tokens}" / "job", ROWS, method="supervised")
        callback, trainer, found = measured(folder, tokens)
        for epoch in (0.5, 1.0):
            trainer.state.epoch, trainer.state.global_step = epoch, int(epoch * 10)
            callback.on_epoch_end(trainer.args, trainer.state, TrainerControl())
        assert len(found) == times, "not in the middle of one, where a run ends early"


@pytest.mark.parametrize(
    ("rate", "is_beyond"), [pytest.param(3e-3, False, marks=pytest.mark.soak), (9e-2, True)]
)
def test_a_job_tells_it_and_30_times_the_learning_rate_is_warned_of(
    tmp_path: Path, rate: float, is_beyond: bool
) -> None:
    folder = job_folder(
        tmp_path / "job", ROWS * 8, method="supervised", learning_rate=rate, batch_size=16, rank=16
    )

    assert start_trainer(folder).wait(300) == 0, folder.log_file.read_text()[-2000:]

    result, events = folder.read_result(TrainingResult), folder.read_events(0)[0]
    assert result is not None
    assert result.forgetting is not None, result
    assert result.forgetting.is_beyond is is_beyond, result.forgetting
    assert result.metrics["general_kl"] == result.forgetting.kl
    assert ["general_kl" in metrics for metrics in result.checkpoints.values()] == [False, False]
    told = next(event for event in events if event["message"].startswith("On general text"))
    assert told["data"] == result.forgetting.model_dump()
    codes = [(event["data"] or {}).get("code") for event in events if event["level"] == "warn"]
    assert ("forgets" in codes) is is_beyond
