"""Adapters that other tools made, in a real vLLM: rewritten, they do in the engine what they did where they were
trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lora import CONFIG, WEIGHTS, Tensors, random_lora, tampered
from tests.engine.checked.test_parity import checked
from tests.engine.conftest import DEMO, FAST, Service
from tunewright.config import EMBEDDED_BASE
from tunewright_client import Adapter

PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def service(checking_service: Service) -> Service:
    return checking_service


@pytest.fixture(scope="module")
def plain(checking_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_lora(checking_base, tmp_path_factory.mktemp("plain") / "a", strength=0.15, seed=41, rank=4)


def with_names(plain: Path, folder: Path) -> Path:
    def rename(tensors: Tensors) -> Tensors:
        return {
            f"module.{name.removeprefix(PREFIX).removesuffix('.weight')}.default.weight": tensor
            for name, tensor in tensors.items()
        }

    return tampered(plain, folder, rename)


def with_patterns(plain: Path, folder: Path) -> Path:
    """The same adapter: a part of its scaling is in patterns, and its queries have rank 2 less, of zeros."""

    def change(tensors: Tensors) -> Tensors:
        scaled = {name: t / 4 if "v_proj.lora_B" in name else t for name, t in tensors.items()}
        return {n: t * 2 if "q_proj.lora_B" in n else t for n, t in scaled.items()}

    alpha = json.loads((plain / CONFIG).read_text())["lora_alpha"]
    return tampered(plain, folder, change, alpha_pattern={"v_proj": 4 * alpha, "q_proj": alpha / 2})


def of_mlx(plain: Path, folder: Path) -> Path:
    folder.mkdir()
    tensors = {}
    for name, tensor in load_file(plain / WEIGHTS).items():
        own = name.removeprefix(PREFIX).replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b")
        tensors[own] = tensor.t().contiguous()
    save_file(tensors, folder / "adapters.safetensors", metadata={"format": "mlx"})
    config = json.loads((plain / CONFIG).read_text())
    parameters = {"rank": config["r"], "scale": config["lora_alpha"] / config["r"], "dropout": 0.0}
    (folder / CONFIG).write_text(json.dumps({"fine_tune_type": "lora", "lora_parameters": parameters}))
    return folder


def test_what_was_rewritten_passes_and_answers_as_the_plain_one(
    service: Service, plain: Path, tmp_path: Path
) -> None:
    forms: dict[str, Callable[[Path, Path], Path]] = {
        "names": with_names,
        "patterns": with_patterns,
        "mlx": of_mlx,
    }
    with service.client(timeout=120) as client:
        ids = {"plain": client.adapters.register(plain, suffix="plain").id}
        for name, form in forms.items():
            ids[name] = client.adapters.register(form(plain, tmp_path / name), suffix=name).id
        found: dict[str, Adapter] = {name: checked(client, id) for name, id in ids.items()}
        for name, adapter in found.items():
            assert adapter.parity is not None
            assert (adapter.state, adapter.parity.verdict) == ("loaded", "pass"), f"{name}: {adapter.parity}"
            assert adapter.parity.slope == pytest.approx(1, abs=0.05)
        assert found["names"].sha256 == found["plain"].sha256
        answers = {
            client.completions.create(model=adapter.model, prompt="The sky is", max_tokens=12, temperature=0)
            .choices[0]
            .text
            for adapter in found.values()
        }
        assert len(answers) == 1


def test_twelve_names_of_one_content_are_measured_once(service: Service, plain: Path, tmp_path: Path) -> None:
    other = tampered(plain, tmp_path / "other", lambda t: {name: tensor * 1.25 for name, tensor in t.items()})
    with service.client(timeout=120) as client:
        ids = [client.adapters.register(other, suffix=f"n{number}").id for number in range(12)]
        found = [checked(client, id) for id in ids]
        measured = [one for one in found if one.parity and one.parity.measured_as is None]
        assert len(measured) == 1
        assert {one.parity.measured_as for one in found if one.parity and one not in measured} == {
            measured[0].model
        }
        assert {one.parity.verdict for one in found if one.parity} == {"pass"}
        unloaded = client.adapters.register(plain, suffix="later", load=False)
        assert (unloaded.state, unloaded.parity) == ("unchecked", None)


@pytest.mark.soak
def test_a_job_of_qlora_tells_what_it_loses_in_16_bits(service: Service, tmp_path: Path) -> None:
    rows = tmp_path / "small.jsonl"
    rows.write_text("".join((DEMO / "train.jsonl").open().readlines()[:32]))
    with service.client(timeout=120) as client:
        tuning = {**FAST, "type": "qlora", "n_epochs": 1}
        training = client.files.upload(rows).id
        job = client.jobs.create(model=EMBEDDED_BASE, training_file=training, seed=7, tuning=tuning)
        job = job.wait(timeout=240)
        adapter = client.adapters.retrieve(job.fine_tuned_model or "")
        assert adapter.parity is not None
        lost = adapter.parity.four_bit
        assert lost is not None, adapter.parity
        assert 0 < lost["loss"] < 3
        assert lost["difference"] == pytest.approx(lost["served_loss"] - lost["loss"], abs=1e-5)
        assert abs(lost["difference"]) < 0.5
        messages = [event.message for event in client.jobs.events(job.id)]
        assert any(f"loss {lost['loss']:.4f} there" in message for message in messages)
