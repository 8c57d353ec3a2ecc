"""Exports by the whole service without vLLM: real merges and quantizations of the embedded base, also killed ones."""

from __future__ import annotations

import json
import os
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.engine.conftest import DEMO, Service, wait_until
from tests.without_vllm import BASE
from transformers import AutoModelForCausalLM, AutoTokenizer

from kills import tree
from lora import random_lora
from tunewright.config import embedded_base_path
from tunewright_client import BadRequestError, Export, JobCancelledError, JobFailedError, Tunewright

ROWS = 8
QUICK = {"validation_rows": ROWS, "calibration_rows": 4}


@pytest.fixture(scope="module")
def files(service: Service) -> dict[str, str]:
    with service.client() as client:
        return {
            "calibration_file": client.files.upload(DEMO / "train.jsonl").id,
            "validation_file": client.files.upload(DEMO / "validation.jsonl").id,
        }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: random_lora(embedded_base_path(), root / name, strength=0.3, seed=seed)
        for seed, name in enumerate(("one", "two"))
    }


@pytest.fixture(scope="module")
def adapters(service: Service, folders: dict[str, Path]) -> dict[str, str]:
    with service.client(timeout=120) as client:
        return {
            name: client.adapters.register(folder, base=BASE, suffix=name).model
            for name, folder in folders.items()
        }


def unpacked(client: Tunewright, model: str, folder: Path) -> Path:
    """The product, as a user downloads it."""
    with tarfile.open(client.models.download(model, folder / "model.tar")) as archive:
        archive.extractall(folder, filter="data")
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


def table(export: Export) -> dict[str, Any]:
    assert export.report is not None
    assert export.report.quality is not None
    return {row.name: row for row in export.report.quality.models}


def logits(model: Any, folder: Path = embedded_base_path()) -> torch.Tensor:
    tokens = AutoTokenizer.from_pretrained(folder)("What color is the sky?", return_tensors="pt")
    with torch.inference_mode():
        found: torch.Tensor = model(**tokens).logits.float()
    return found


def test_a_merged_model_is_the_adapter_in_the_base(
    client: Tunewright,
    adapters: dict[str, str],
    folders: dict[str, Path],
    files: dict[str, str],
    tmp_path: Path,
) -> None:
    export = client.exports.create(
        model=adapters["one"], format="merged", validation_file=files["validation_file"], validation_rows=ROWS
    ).wait(timeout=240)
    rows = table(export)
    assert list(rows) == ["base", "adapter", "adapter in bfloat16", "merged"]
    assert rows["merged"].kl < rows["adapter in bfloat16"].kl < rows["base"].kl
    assert rows["merged"].loss == pytest.approx(rows["adapter"].loss, abs=1e-2)
    gate = export.report.gate  # type: ignore[union-attr]
    assert gate is not None
    assert gate.passed
    assert gate.max_kl == pytest.approx(5 * rows["adapter in bfloat16"].kl)
    folder = unpacked(client, export.exported_model or "", tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(folder)
    assert merged.dtype == torch.bfloat16
    base = AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32)
    wanted = logits(PeftModel.from_pretrained(base, folders["one"]))
    assert torch.allclose(logits(merged.float()), wanted, atol=0.05)
    assert not torch.allclose(
        logits(AutoModelForCausalLM.from_pretrained(embedded_base_path())), wanted, atol=0.5
    )
    assert AutoTokenizer.from_pretrained(folder).chat_template
    card = (folder / "README.md").read_text()
    assert f"adapter `{adapters['one']}`" in card
    assert "| merged |" in card
    assert "  - registered from adapter_config.json, adapter_model.safetensors" in card
    listed = client.models.retrieve(export.exported_model or "")
    assert (listed.kind, listed.method, listed.base) == ("full", "merged", BASE)
    with pytest.raises(BadRequestError, match="deploy"):
        client.chat.create(export.exported_model or "", [{"role": "user", "content": "Hello"}])


def test_an_export_past_its_gate_is_not_published_unless_forced(
    service: Service, client: Tunewright, adapters: dict[str, str], files: dict[str, str]
) -> None:
    asked = {"model": adapters["one"], "format": "merged", "max_kl": 1e-12, "validation_rows": ROWS}
    asked["validation_file"] = files["validation_file"]
    before = {model.id for model in client.models.list()}
    with pytest.raises(JobFailedError, match=r"KL divergence from the adapter .* above 1e-12") as failure:
        client.exports.create(**asked, suffix="refused").wait(timeout=240)
    refused = client.exports.retrieve(failure.value.job.id)
    assert refused.error is not None
    assert refused.error.code == "quality_gate_failed"
    assert refused.report is not None
    assert refused.report.gate is not None
    assert not refused.report.gate.passed
    assert table(refused)["merged"].kl > 1e-12
    assert {model.id for model in client.models.list()} == before
    forced = client.exports.create(**asked, suffix="forced", force=True).wait(timeout=240)
    assert forced.report is not None
    assert forced.report.gate is not None
    assert (forced.report.gate.passed, forced.report.gate.forced) == (False, True)
    assert any("Exceeds the gate" in event.message for event in forced.events())
    folder = service.data_dir / "artifacts" / str(client.models.retrieve(forced.exported_model or "").sha256)
    assert "**It exceeds the gate**" in (folder / "README.md").read_text()


def test_several_adapters_become_one(
    client: Tunewright,
    adapters: dict[str, str],
    files: dict[str, str],
    folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    export = client.exports.create(
        models={adapters["one"]: 0.75, adapters["two"]: 0.25},
        format="adapter",
        suffix="both",
        validation_file=files["validation_file"],
        validation_rows=ROWS,
    ).wait(timeout=240)
    assert list(table(export)) == ["base", adapters["one"], adapters["two"], "adapter"]
    made = client.adapters.retrieve(export.exported_model or "")
    assert (made.rank, made.source, made.base) == (16, "export", BASE)
    folder = tmp_path / "both"
    folder.mkdir()
    with tarfile.open(client.adapters.download(made.id, tmp_path / "both.tar")) as archive:
        archive.extractall(folder, filter="data")
    (folder,) = folder.iterdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    deltas = []
    for path in (folders["one"], folders["two"], folder):
        tensors = load_file(path / "adapter_model.safetensors")
        config = json.loads((path / "adapter_config.json").read_text())
        scale = config["lora_alpha"] / config["r"]
        deltas.append(scale * tensors[name.format("B")] @ tensors[name.format("A")])
    assert torch.allclose(deltas[2], 0.75 * deltas[0] + 0.25 * deltas[1], atol=1e-6)


@pytest.mark.soak
def test_awq_killed_in_the_middle_goes_on_and_is_the_same(
    service: Service, client: Tunewright, adapters: dict[str, str], files: dict[str, str], tmp_path: Path
) -> None:
    asked = {"model": adapters["one"], "format": "awq", "max_kl": 5.0, **QUICK, **files}
    undisturbed = client.exports.create(**asked, suffix="calm").wait(timeout=500)
    assert list(table(undisturbed)) == ["base", "adapter", "adapter in bfloat16", "merged", "awq"]
    assert undisturbed.report is not None
    assert undisturbed.report.bytes is not None
    assert undisturbed.report.source_bytes is not None
    assert undisturbed.report.bytes < 0.4 * undisturbed.report.source_bytes

    export = client.exports.create(**asked, suffix="killed")
    known = {model.id for model in client.models.list()}
    work = service.data_dir / "jobs" / export.id / "work"
    moments: dict[str, Callable[[], bool]] = {
        "merging": (work / "merged").exists,
        "quantizing": lambda: len(list((work / "layers").glob("*.safetensors"))) >= 2,
        "measuring": (work / "awq").exists,
    }
    for moment, has_come in moments.items():
        wait_until(has_come, 300, moment)
        pids = processes(service, export.id)
        assert pids, f"it was over before it could be killed while {moment}"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda pids=pids: not set(pids) & set(processes(service, export.id)), 30, "its death")
        assert {model.id for model in client.models.list()} == known
    export = export.wait(timeout=500)
    assert export.report is not None
    assert export.report.details["quantize"]["reused_layers"] >= 2
    weights = []
    for made in (undisturbed, export):
        sha256 = client.models.retrieve(made.exported_model or "").sha256
        folder = service.data_dir / "artifacts" / str(sha256)
        weights.append((folder / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert table(export) == table(undisturbed)
    messages = [e.message for e in client.exports.stream_events(export.id)]
    assert sum("The export ended with signal 9" in message for message in messages) == 3


def test_a_cancelled_export_leaves_nothing(
    service: Service, client: Tunewright, adapters: dict[str, str], files: dict[str, str]
) -> None:
    export = client.exports.create(model=adapters["two"], format="awq", suffix="gone", **QUICK, **files)
    wait_until(
        lambda: any(event.message.startswith("quantize ") for event in client.exports.events(export.id)), 300
    )
    export.cancel()
    with pytest.raises(JobCancelledError):
        export.wait(timeout=30)
    wait_until(lambda: not processes(service, export.id), 30, "the process to end")
    job_folder = service.data_dir / "jobs" / export.id
    wait_until(lambda: not (job_folder / "work").exists(), 30, "its work to be removed")
    assert not (job_folder / "model").exists()
    assert client.exports.retrieve(export.id).exported_model is None


def processes(service: Service, export_id: str) -> list[int]:
    """The process id of the export itself, not of its lifeline."""
    title = f"tunewright: export {export_id}"
    return [pid for pid, (_, line) in tree(service.process.pid).items() if line.strip() == title]


def test_dora_is_trained_and_served_only_when_merged(
    client: Tunewright, files: dict[str, str], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join((DEMO / "train.jsonl").read_text().splitlines(keepends=True)[:32]))
    tuning = {
        "type": "lora",
        "use_dora": True,
        "rank": 8,
        "n_epochs": 1,
        "learning_rate": 5e-3,
        "batch_size": 8,
    }
    job = client.jobs.create(model=BASE, training_file=rows, suffix="dora", tuning=tuning)
    wait_until(
        lambda: any("vLLM serves no DoRA" in event.message for event in client.jobs.events(job.id)), 60
    )
    job = job.wait(timeout=300)
    name = job.fine_tuned_model or ""
    adapter = client.adapters.retrieve(name)
    assert (adapter.state, adapter.desired) == ("merge_only", "unloaded")
    assert name not in [model.id for model in client.models.list()]
    hello: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
    for refused in (
        lambda: client.chat.create(name, hello),
        lambda: client.adapters.load(name, force=True),
        lambda: client.adapters.check(name),
    ):
        with pytest.raises(BadRequestError, match="merge it into its base") as error:
            refused()
        assert error.value.code == "model_merge_only"
    with pytest.raises(BadRequestError, match="merge it, and give the result"):
        client.aliases.set("dora", name)
    export = client.exports.create(
        model=name, format="merged", validation_file=files["validation_file"], validation_rows=ROWS
    ).wait(timeout=240)
    assert any("DoRA" in note for note in export.notes)
    rows_of = table(export)
    assert rows_of["merged"].kl < rows_of["adapter in bfloat16"].kl < rows_of["base"].kl
