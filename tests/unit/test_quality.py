"""Measurements of a model against a reference equal those of whole models in memory."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny import VOCABULARY, tiny_adapter, tiny_model, token_rows, whole
from tunewright.evaluate import quality
from tunewright.evaluate.quality import Candidate, Quality, Row, measure

LORA: dict[str, Any] = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
LENGTHS = (24, 9, 17, 3, 24)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "base", "llama")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    return tiny_adapter(base.parent / "adapter", base, **LORA)


@pytest.fixture(scope="module")
def halved(adapter: Path) -> Path:
    """The same adapter with half its alpha."""
    folder = adapter.parent / "halved"
    folder.mkdir()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] / 2}))
    (folder / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    return folder


def rows() -> list[Row]:
    """Rows of several lengths; in each, the second half counts."""
    tokens = token_rows(len(LENGTHS), max(LENGTHS)).tolist()
    return [
        Row(row[:length], [at >= length // 2 for at in range(length)])
        for row, length in zip(tokens, LENGTHS, strict=True)
    ]


def measured(candidates: list[Candidate], reference: str = "base", **changes: Any) -> Quality:
    arguments: dict[str, Any] = {"rows": rows(), "device": "cpu", "dtype": torch.float32, **changes}
    return measure(candidates, reference=reference, **arguments)


def by_hand(reference: torch.nn.Module, other: torch.nn.Module) -> tuple[float, float, float]:
    """Loss, KL over the whole vocabulary, and agreement: row by row, without padding, in float64."""
    losses, divergences, agreed = [], [], []
    for row in rows():
        with torch.inference_mode():
            p, q = (
                model(input_ids=torch.tensor([row.tokens])).logits[0].double().log_softmax(-1)
                for model in (reference, other)
            )
        for at in range(1, len(row.tokens)):
            if row.counted[at]:
                losses.append(-q[at - 1, row.tokens[at]].item())
                divergences.append((p[at - 1].exp() * (p[at - 1] - q[at - 1])).sum().item())
                agreed.append(p[at - 1].argmax() == q[at - 1].argmax())
    return sum(losses) / len(losses), sum(divergences) / len(losses), sum(agreed) / len(losses)


def test_numbers_are_those_of_whole_models(base: Path, adapter: Path) -> None:
    found = measured([Candidate("base", base), Candidate("adapted", base, adapter=adapter)])

    loss, divergence, agreement = by_hand(whole(base), whole(base, adapter))
    adapted = found.of("adapted")
    assert found.exact
    assert adapted.tokens == sum(sum(row.counted[1:]) for row in rows())
    assert adapted.loss == pytest.approx(loss, abs=1e-5)
    assert adapted.kl == pytest.approx(divergence, abs=1e-5)
    assert adapted.agreement == pytest.approx(agreement)
    assert 0 < agreement < 1
    assert divergence > 0.01
    assert found.of("base").loss == pytest.approx(by_hand(whole(base), whole(base))[0], abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_agrees_with_itself(base: Path, adapter: Path, dtype: torch.dtype) -> None:
    same = [Candidate("base", base, adapter=adapter), Candidate("copy", base, adapter=adapter)]

    copy = measured(same, dtype=dtype).of("copy")

    assert (copy.kl, copy.agreement, copy.finite) == (0.0, 1.0, True)


def test_direction_and_order(base: Path, adapter: Path) -> None:
    """KL(reference || candidate), whichever is named first."""
    candidates = [Candidate("adapted", base, adapter=adapter), Candidate("base", base)]

    found = measured(candidates, "base")

    assert [candidate.name for candidate in found.candidates] == ["adapted", "base"]
    forwards, backwards = (
        by_hand(whole(base), whole(base, adapter)),
        by_hand(whole(base, adapter), whole(base)),
    )
    assert found.of("adapted").kl == pytest.approx(forwards[1], abs=1e-5)
    assert abs(forwards[1] - backwards[1]) > 1e-4


def test_a_wrong_alpha_shows(base: Path, adapter: Path, halved: Path) -> None:
    merged = whole(base, adapter).merge_and_unload()
    folder = base.parent / "merged"
    merged.save_pretrained(folder)

    found = measured(
        [
            Candidate("adapter", base, adapter=adapter),
            Candidate("merged", folder),
            Candidate("halved", base, adapter=halved),
        ],
        "adapter",
    )

    assert found.of("merged").kl == pytest.approx(0, abs=1e-6)
    assert (found.of("halved").kl or 0) > 0.01


def test_of_a_larger_vocabulary_the_divergence_is_a_close_lower_bound(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = [Candidate("base", base), Candidate("adapted", base, adapter=adapter)]
    whole_kl = measured(candidates).of("adapted").kl
    kept = []
    for count in (10, 80, VOCABULARY - 1, VOCABULARY):
        monkeypatch.setattr(quality, "KEPT", count)
        found = measured(candidates)
        assert found.exact == (count == VOCABULARY)
        kept.append(found.of("adapted").kl)

    assert kept == sorted(kept)
    assert kept[0] < 0.95 * whole_kl
    assert kept[2] == pytest.approx(whole_kl, rel=1e-5)  # one token is the rest
    assert kept[3] == whole_kl


def test_batches_are_no_larger_than_allowed_and_change_nothing(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = [Candidate("base", base), Candidate("adapted", base, adapter=adapter)]
    at_once = measured(candidates).of("adapted")
    progress: list[tuple[int, int]] = []
    monkeypatch.setattr(quality, "_LOGITS", 2 * 24 * VOCABULARY)
    monkeypatch.setattr(quality, "_CHUNK", 3 * VOCABULARY)

    batched = measured(candidates, on_progress=lambda done, total: progress.append((done, total))).of(
        "adapted"
    )

    assert progress == [(at, 6) for at in range(1, 7)]  # 24 and 24; 17 and 9; 3
    sizes = [len(batch) * len(batch[0].tokens) for batch in quality._batches(rows(), VOCABULARY)]
    assert sizes == [48, 34, 3]
    assert batched.kl == pytest.approx(at_once.kl, abs=1e-6)
    assert batched.loss == pytest.approx(at_once.loss, abs=1e-6)


def test_logits_that_overflow_give_no_numbers(base: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in base.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"] *= 1e38
    tensors["lm_head.weight"] *= 1e3
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})

    found = measured([Candidate("base", base), Candidate("broken", broken)])

    bad = found.of("broken")
    assert (bad.loss, bad.kl, bad.agreement, bad.finite) == (None, None, None, False)
    assert found.of("base").finite


def test_what_the_reference_holds_for_impossible_costs_nothing() -> None:
    sums = quality._Sums()
    reference = torch.tensor([[0.0, -math.inf, 0.0]])

    sums.add(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([0]), quality._keep(reference))

    assert sums.measured("x").kl == pytest.approx(math.log(1.5), abs=1e-6)


@pytest.mark.parametrize("likeliest", [0, 1])
def test_of_equally_likely_tokens_either_agrees(likeliest: int) -> None:
    sums = quality._Sums()
    reference = torch.zeros(1, 3)
    reference[0, likeliest] = 3

    sums.add(torch.tensor([[2.0, 2.0, 0.0]]), torch.tensor([0]), quality._keep(reference))

    assert sums.measured("x").agreement == 1


@pytest.mark.parametrize(
    ("changes", "message"), [({"rows": []}, "no token"), ({"reference": "x"}, "named x")]
)
def test_nothing_to_measure_is_said(base: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measured([Candidate("base", base)], **changes)


def test_rows_in_which_nothing_counts_are_left_out(base: Path) -> None:
    first_only = Row([5, 6, 7], [True, False, False])

    found = measured([Candidate("base", base)], rows=[*rows(), first_only])

    assert found.of("base") == measured([Candidate("base", base)]).of("base")
