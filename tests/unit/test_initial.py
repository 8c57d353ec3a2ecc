"""Adapters that begin by `tuning.init` are those of a plain script with peft, and their products are on the base as it
is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from starlette.testclient import TestClient
from tests.unit.test_api import BASE, api, built, error, make, worker  # noqa: F401
from tests.unit.test_file_checks import upload
from tests.unit.test_general_text import by_hand
from tests.unit.test_training_options import ROWS, STEPS, plain_script
from transformers import AutoModelForCausalLM

from preferences import as_openai, assert_close, job_folder, text_rows, trained, trainer_of
from tiny import tiny_model
from tunewright.config import embedded_base_path
from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.plan.defaults import resolve
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.registry.adapter_config import parse_adapter_config
from tunewright.trainer.initial import new_adapter, on_plain_base
from tunewright.trainer.run import METHODS
from tunewright.trainer.spec import TrainingResult, TrainingSpec
from tunewright.trainer.training import train

pytestmark = pytest.mark.usefixtures("few_passages")

CHANGING = ["pissa", "pissa_niter_4", "olora"]
EACH = [
    init if init in ("pissa", "gaussian") else pytest.param(init, marks=pytest.mark.soak)
    for init in (*CHANGING, "gaussian", "orthogonal")
]
"""The others are part of `make soak-suite`."""
TOKENS = torch.arange(5, 45)[None]


def folder_of(path: Path, init: str, **tuning: Any) -> JobFolder:
    return job_folder(path / "job", ROWS, method="supervised", weight_decay=0.01, init=init, rank=4, **tuning)


def run(folder: JobFolder) -> TrainingResult:
    spec = folder.read_spec(TrainingSpec)
    result = train(folder, spec, EventLog(folder), METHODS[spec.method])
    assert result is not None
    return result


def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS, use_cache=False).logits


@pytest.mark.parametrize("init", EACH)
def test_a_run_learns_what_a_plain_script_with_peft_learns(tmp_path: Path, init: str) -> None:
    folder = folder_of(tmp_path, init)
    ours = trainer_of(folder)
    before = logits(ours.model)
    torch.testing.assert_close(before, logits(base()), atol=2e-3, rtol=1e-3)
    ours.train()

    plain = plain_script(folder, ours.train_dataset, init=init)

    assert ours.state.global_step == STEPS
    assert_close(trained(ours.model), trained(plain.model))


@pytest.mark.parametrize(("init", "rslora"), [("pissa", False), ("pissa", True), ("olora", False)])
def test_on_the_base_as_it_is_an_adapter_is_what_peft_converts(
    tmp_path: Path, init: str, rslora: bool
) -> None:
    initial, product = tmp_path / "initial", tmp_path / "product"
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", use_rslora=rslora, task_type="CAUSAL_LM"
    )
    adapted = new_adapter(base(), config, init, initial)
    torch.testing.assert_close(logits(adapted), logits(base()), atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.02
    expected = logits(adapted)
    assert not torch.allclose(expected, logits(base()), atol=0.1), "it has learnt something"

    adapted.save_pretrained(product)
    on_plain_base(product, initial)

    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(base(), product)), expected, atol=1e-3, rtol=1e-3
    )
    shutil.copytree(initial, tmp_path / "for-peft")
    theirs = tmp_path / "peft"
    adapted.save_pretrained(theirs, path_initial_model_for_weight_conversion=str(tmp_path / "for-peft"))
    weights, made = (load_file(path / "adapter_model.safetensors") for path in (theirs, product))
    assert weights.keys() == made.keys()
    assert all(torch.equal(one, made[name]) for name, one in weights.items())
    configs = [json.loads((path / "adapter_config.json").read_text()) for path in (theirs, product)]
    for name in ("r", "lora_alpha", "use_rslora", "init_lora_weights"):
        assert configs[0][name] == pytest.approx(configs[1][name])
    parsed = parse_adapter_config(configs[1])
    assert (parsed.rank, parsed.scaling) == (8, pytest.approx(8 / (2 if rslora else 4)))


@pytest.mark.parametrize("init", CHANGING)
def test_a_later_start_has_the_same_base_and_decomposes_nothing(
    tmp_path: Path, init: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def adapted() -> Any:
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
        return new_adapter(base(), config, init, tmp_path / "initial")

    first = adapted()
    for name in ("svd", "qr"):
        monkeypatch.delattr(torch.linalg, name)
    for (name, one), (_, other) in zip(first.named_parameters(), adapted().named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_the_products_of_a_run_are_on_the_base_as_it_is(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "pissa")
    forgetting = run(folder).forgetting
    before = base()
    after = PeftModel.from_pretrained(base(), folder.adapter).eval()
    assert forgetting is not None
    assert forgetting.loss_before == pytest.approx(by_hand(before, before)[1], rel=1e-4), "of the whole base"
    kl, loss = by_hand(before, after)
    assert forgetting.loss == pytest.approx(loss, rel=1e-3)
    assert 0.6 * kl < forgetting.kl <= 1.01 * kl
    ours = trainer_of(folder)
    for step, path in ((STEPS, folder.adapter), (STEPS // 2, folder.converted(STEPS // 2))):
        ours._load_from_checkpoint(str(folder.checkpoints / f"step-{step}"))
        on_base = PeftModel.from_pretrained(base(), path)
        torch.testing.assert_close(logits(on_base), logits(ours.model), atol=1e-4, rtol=1e-4)
    assert not list(folder.path.glob(".*"))


@pytest.mark.parametrize("init", EACH[: len(CHANGING)])
def test_a_start_that_goes_on_ends_bit_for_bit_as_one_that_was_not_disturbed(
    tmp_path: Path, init: str
) -> None:
    folder = folder_of(tmp_path, init)
    run(folder)
    product = load_file(folder.adapter / "adapter_model.safetensors")
    shutil.rmtree(folder.checkpoints / f"step-{STEPS}")
    shutil.rmtree(folder.adapter)

    run(folder)

    again = load_file(folder.adapter / "adapter_model.safetensors")
    assert all(torch.equal(one, again[name]) for name, one in product.items())


def test_layers_with_turned_weights_are_changed_back_the_same(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "gpt2", "gpt2")

    def adapted() -> Any:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
        return new_adapter(model, config, "pissa", tmp_path / "initial")

    first, second = adapted(), adapted()
    for (name, one), (_, other) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_the_default_rank_is_half_of_what_the_engine_serves() -> None:
    def rank(**tuning: Any) -> int | None:
        return resolve(
            tuning=TuningOptions(**tuning), hyperparameters=HyperparameterOptions(), rows=64, context=64, max_rank=8,
            device="cpu",
        ).rank  # fmt: skip

    assert (rank(), rank(init="gaussian"), rank(init="pissa")) == (8, 8, 4)


@pytest.mark.parametrize(
    ("tuning", "method", "param", "why"),
    [
        ({"init": "pissa", "rank": 48}, "supervised", "tuning.rank", "one of rank 96 (with init pissa twice"),
        ({"init": "pissa"}, "dpo", "tuning.init", "dpo compares with the base"),
        ({"init": "olora", "type": "qlora"}, "supervised", "tuning.init", "use type lora"),
        ({"init": "pissa_niter_4", "use_dora": True}, "supervised", "tuning.init", "leave use_dora out"),
        ({"init": "gaussian", "type": "full"}, "supervised", "tuning.init", "is for adapters"),
        ({"init": "corda"}, "supervised", "tuning.init", "pissa"),
    ],
)  # fmt: skip
def test_what_is_not_possible_is_refused(
    api: TestClient,  # noqa: F811
    tuning: dict[str, Any],
    method: str,
    param: str,
    why: str,
) -> None:
    rows = [as_openai(row) for row in text_rows(8)] if method == "dpo" else ROWS
    file = upload(api, "".join(json.dumps(row) + "\n" for row in rows).encode())["id"]
    body = {"model": BASE, "training_file": file, "method": {"type": method}, "tuning": tuning}
    answer = api.post("/v1/fine_tuning/jobs", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert why in answer.json()["error"]["message"]
