"""The quality gate of an export: what passes, and the faults that it is meant to find."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora import CONFIG, random_lora
from tunewright.config import embedded_base_path
from tunewright.export import run
from tunewright.export.folder import Calibration, Combine, ExportSpec, Rows, SourceAdapter
from tunewright.export.merge import merge
from tunewright.jobs.folder import JobFolder, Outcome
from tunewright.rows.sources import Source

BASE = embedded_base_path()
DEMO = BASE.parent / "demo"
Merge = Callable[..., Any]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_lora(BASE, tmp_path_factory.mktemp("gate") / "a", strength=0.3, seed=4)


@pytest.fixture
def export(tmp_path: Path, adapter: Path) -> Callable[..., Outcome]:
    """Runs an export in this process."""

    def exported(**changes: Any) -> Outcome:
        folder = JobFolder(tmp_path / "job")
        spec = ExportSpec(
            job_id="export-1", model="ft:tiny:x:1", format="merged", source="ft:tiny:a:1", base_name="tiny",
            base_path=str(BASE), adapters=[SourceAdapter(model="ft:tiny:a:1", sha256="a" * 64, path=str(adapter))],
            seed=0, device="cpu",
            rows=Rows(files=(Source(file=str(DEMO / "validation.jsonl")),), rows_from="validation_file", count=8),
        ).model_copy(update=changes)  # fmt: skip
        folder.write_spec(spec)
        assert run.run_export(folder, spec) == 0
        outcome = folder.read_outcome()
        assert outcome is not None
        assert (folder.model / "config.json").exists() == (outcome.status == "succeeded")
        return outcome

    return exported


def gate(outcome: Outcome) -> dict[str, Any]:
    assert outcome.report is not None
    print(outcome.report["gate"])
    return dict(outcome.report["gate"])


def in_four_bits(folder: Path) -> None:
    """The linear layers' weights, as QLoRA keeps them: NF4, double quantization."""
    tensors = load_file(folder / "model.safetensors")
    for name, weight in tensors.items():
        if name.endswith("_proj.weight"):
            packed, state = bnb.quantize_4bit(weight.contiguous(), quant_type="nf4", compress_statistics=True)
            tensors[name] = bnb.dequantize_4bit(packed, state).to(weight.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def merged_into_four_bits(base: Path, adapter: Path, out: Path, **options: Any) -> Any:
    done = merge(base, adapter, out, **options)
    in_four_bits(out)
    return done


def with_alpha(factor: float) -> Merge:
    def merged(base: Path, adapter: Path, out: Path, **options: Any) -> Any:
        wrong = Path(shutil.copytree(adapter, out.parent / "wrong"))
        config = json.loads((wrong / CONFIG).read_text())
        (wrong / CONFIG).write_text(json.dumps({**config, "lora_alpha": config["lora_alpha"] * factor}))
        return merge(base, wrong, out, **options)

    return merged


def test_an_honest_merge_is_far_below_the_noise(export: Callable[..., Outcome]) -> None:
    outcome = export()
    assert outcome.status == "succeeded", outcome.error_message
    found = gate(outcome)
    assert found["passed"]
    assert found["kl"] < 0.2 * found["noise"]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(merged_into_four_bits, id="into-4-bit-weights"),
        pytest.param(with_alpha(0.5), id="half-alpha"),
        pytest.param(with_alpha(0.9), id="alpha-10%-low"),
        pytest.param(with_alpha(1.1), id="alpha-10%-high"),
    ],
)
def test_a_wrong_merge_is_caught(
    export: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, fault: Merge
) -> None:
    monkeypatch.setattr(run, "merge", fault)
    outcome = export()
    found = gate(outcome)
    assert found["kl"] > 2 * found["max_kl"]
    assert (outcome.status, outcome.error_code) == ("failed", "quality_gate_failed")
    assert "merged: KL divergence from the adapter" in (outcome.error_message or "")


def test_quantization_does_not_hide_a_wrong_merge(
    export: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "merge", with_alpha(0.9))
    calibration = Calibration(files=(Source(file=str(DEMO / "train.jsonl")),), rows=4, group_size=128)
    outcome = export(format="awq", calibration=calibration, max_awq_kl=100.0)
    assert outcome.error_code == "quality_gate_failed"
    assert "merged:" in (outcome.error_message or "")
    assert "awq:" not in (outcome.error_message or "")


def test_calibration_on_noise_does_no_harm_that_the_gate_would_have_to_stop(
    export: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bound on this base (docs/decisions/0014): a small part of what the adapter itself changes."""

    def noise(_: Any) -> list[list[int]]:
        generator = torch.Generator().manual_seed(0)
        found: list[list[int]] = torch.randint(0, 1024, (2, 256), generator=generator).tolist()
        return found

    monkeypatch.setattr(run.ExportText, "calibration", noise)
    calibration = Calibration(files=(Source(file=str(DEMO / "train.jsonl")),), rows=4, group_size=128)
    outcome = export(format="awq", calibration=calibration, max_awq_kl=0.2)
    assert gate(outcome)["passed"]
    assert outcome.report is not None
    rows = {row["name"]: row for row in outcome.report["quality"]["models"]}
    assert rows["awq"]["kl"] < 0.2 * rows["base"]["kl"]
    assert rows["awq"]["loss"] == pytest.approx(rows["adapter"]["loss"], abs=0.1)


@pytest.mark.parametrize("method", ["linear", "soup", "ties", "dare"])
def test_several_adapters_are_combined_and_merged(
    export: Callable[..., Outcome], adapter: Path, tmp_path: Path, method: Any
) -> None:
    other = random_lora(BASE, tmp_path / "other", strength=0.2, seed=9)
    sources = [
        SourceAdapter(model=f"ft:tiny:{n}:1", sha256=str(n) * 64, path=str(path))
        for n, path in enumerate((adapter, other))
    ]
    outcome = export(adapters=sources, combine=Combine(method=method, max_rank=64))
    assert outcome.status == "succeeded", outcome.error_message
    assert gate(outcome)["passed"]
    assert outcome.report is not None
    names = [row["name"] for row in outcome.report["quality"]["models"]]
    assert names == ["base", "ft:tiny:0:1", "ft:tiny:1:1", "adapter", "adapter in bfloat16", "merged"]
    error = outcome.report["details"]["combine"]["relative_error"]
    assert error == 0 if method in ("linear", "soup") else 0 < error < 1
    card = (tmp_path / "job" / "model" / "README.md").read_text()
    assert f"combined by {method}" in card


@pytest.mark.parametrize(("source", "name"), [("tiny", "base"), ("ft:tiny:all:1", "model")])
def test_bases_and_whole_models_are_quantized_as_they_are(
    export: Callable[..., Outcome], source: str, name: str
) -> None:
    calibration = Calibration(files=(Source(file=str(DEMO / "train.jsonl")),), rows=4, group_size=128)
    outcome = export(format="awq", adapters=[], source=source, calibration=calibration, max_awq_kl=0.2)
    assert outcome.status == "succeeded", outcome.error_message
    assert outcome.report is not None
    assert outcome.report["quality"]["source"] == name
    assert [row["name"] for row in outcome.report["quality"]["models"]] == [name, "awq"]
    assert gate(outcome)["noise"] is None


@pytest.mark.parametrize(("strength", "is_reported"), [(0.01, True), (0.3, False)])
def test_an_adapter_that_is_lost_in_quantization_is_told(
    export: Callable[..., Outcome], tmp_path: Path, strength: float, is_reported: bool
) -> None:
    other = random_lora(BASE, tmp_path / "other", strength=strength, seed=6)
    outcome = export(
        format="awq",
        calibration=Calibration(files=(Source(file=str(DEMO / "train.jsonl")),), rows=4, group_size=128),
        adapters=[SourceAdapter(model="ft:tiny:a:1", sha256="a" * 64, path=str(other))],
        max_awq_kl=100.0,
    )
    assert outcome.status == "succeeded", outcome.error_message
    events = (tmp_path / "job" / "events.jsonl").read_text()
    assert ("Quantizing changes more" in events) is is_reported


def test_an_adapter_that_overflows_is_not_published(
    export: Callable[..., Outcome], adapter: Path, tmp_path: Path
) -> None:
    from lora import tampered

    huge = tampered(adapter, tmp_path / "huge", lambda t: {n: v * 1e30 for n, v in t.items()})
    outcome = export(adapters=[SourceAdapter(model="ft:tiny:a:1", sha256="a" * 64, path=str(huge))])
    assert outcome.status == "failed"
    assert outcome.error_code == "adapter_invalid"
