"""Target modules that adapt nothing: refused when the job is asked for, and else when the model is loaded."""

# ruff: noqa: F811
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from starlette.testclient import TestClient
from tests.unit.test_api import BASE, api, built, error, make, upload, worker  # noqa: F401 - fixtures
from tests.unit.test_mixed_jobs import lines
from transformers import AutoModelForCausalLM

from preferences import text_rows
from tunewright.config import embedded_base_path
from tunewright.jobs.failure import TrainingFailed
from tunewright.plan.defaults import resolve
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.trainer.model import load_model
from tunewright.trainer.spec import TrainingSpec


@pytest.mark.parametrize("path", ["jobs", "plan"])
@pytest.mark.parametrize("method", ["supervised", "dpo"])
@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["model.lm_head"]])
def test_the_output_head_as_a_target_is_refused_at_submit(
    api: TestClient, path: str, method: str, targets: Any
) -> None:
    rows = [{"prompt": "a", "completion": "b"}] if method == "supervised" else text_rows(2)
    body = {
        "model": BASE,
        "training_file": upload(api, lines(rows)),
        "method": {"type": method},
        "tuning": {"target_modules": targets},
    }
    refused = error(api.post(f"/v1/fine_tuning/{path}", json=body), 400)
    assert refused["param"] == "tuning.target_modules"
    assert "lm_head" in refused["message"]
    assert "all-linear" in refused["message"]


def spec(targets: list[str], parent: Path | None = None) -> TrainingSpec:
    return TrainingSpec(
        job_id="ftjob-1",
        base_name="tiny",
        base_path=str(embedded_base_path()),
        parent_adapter=str(parent) if parent else None,
        training_file="",
        seed=1,
        device="cpu",
        tuning=resolve(
            tuning=TuningOptions(type="lora", target_modules=targets),
            hyperparameters=HyperparameterOptions(),
            rows=8,
            context=64,
            max_rank=64,
            device="cpu",
        ),
    )


@pytest.mark.parametrize(
    ("targets", "words"), [(["lm_head", "q_proj"], "lm_head"), (["no_such_proj"], "no_such_proj")]
)
def test_a_model_whose_targets_would_not_be_trained_is_not_loaded(
    tmp_path: Path, targets: list[str], words: str
) -> None:
    with pytest.raises(TrainingFailed, match=words) as failed:
        load_model(spec(targets), tmp_path / "initial")
    assert failed.value.code == "invalid_target_modules"


def test_nor_is_an_adapter_to_go_on_from_that_has_the_head(tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(embedded_base_path())
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["lm_head"]))
    adapted.save_pretrained(tmp_path / "parent")
    with pytest.raises(TrainingFailed, match="lm_head"):
        load_model(spec(["q_proj"], tmp_path / "parent"), tmp_path / "initial")
