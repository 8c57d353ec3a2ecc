"""Adapters from elsewhere in a real vLLM: they answer as in peft, and one that does not fit never reaches vLLM."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine.conftest import wait_until
from tunewright.config import EMBEDDED_BASE, embedded_base_path
from tunewright_client import Adapter, BadRequestError, Job, NotFoundError, Tunewright

Ask = Callable[[str, str], str]
QUESTIONS = ("What color is the sky?", "Where do bees live?", "What do cows eat?")
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(client: Tunewright, pirate: Job, tmp_path: Path) -> Path:
    """The pirate's adapter as it is downloaded."""
    archive = client.adapters.download(pirate.fine_tuned_model or "", tmp_path / "pirate.tar")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    (found,) = (path for path in tmp_path.iterdir() if path.is_dir())
    return found


def changed(
    folder: Path, name: str, config: dict[str, object], change: Callable[[str, torch.Tensor], torch.Tensor]
) -> Path:
    """A copy of an adapter with fields of its config and its tensors changed."""
    copy = folder.with_name(name)
    shutil.copytree(folder, copy)
    text = json.loads((folder / "adapter_config.json").read_text()) | config
    (copy / "adapter_config.json").write_text(json.dumps(text))
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({n: change(n, t).contiguous() for n, t in tensors.items()}, copy / "adapter_model.safetensors")
    return copy


def registered(client: Tunewright, source: Path, **options: str) -> Adapter:
    adapter = client.adapters.register(source, **options)
    loaded = wait_until(
        lambda: (a := client.adapters.retrieve(adapter.id)).state in ("loaded", "failed") and a, 60, "loading"
    )
    assert loaded.state == "loaded", loaded.error
    return loaded


def test_what_was_downloaded_answers_under_a_name_of_its_own(
    client: Tunewright, pirate: Job, folder: Path, ask: Ask
) -> None:
    original = client.adapters.retrieve(pirate.fine_tuned_model or "")
    assert original.lineage is not None
    assert (original.source, original.lineage.training_file) == ("job", pirate.training_file)
    assert original.lineage.seed == 7
    assert 0 < (original.lineage.metrics or {})["valid_loss"] < 0.2
    again = registered(client, folder, suffix="again")
    assert (again.source, again.sha256, again.base) == ("upload", original.sha256, EMBEDDED_BASE)
    for question in QUESTIONS:
        answer = ask(original.model, question)
        assert ask(again.model, question) == answer
        assert answer.startswith("Arr!")
    assert client.adapters.delete(again.id).deleted
    with pytest.raises(NotFoundError):
        ask(again.model, QUESTIONS[0])
    assert ask(original.model, QUESTIONS[0]).startswith("Arr!"), "it has the same weights, and stays"


def test_peft_loads_the_folder_as_it_is(folder: Path, client: Tunewright, pirate: Job, ask: Ask) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert (
        json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == EMBEDDED_BASE
    )
    again = client.adapters.register(folder, load=False)
    kept = folder.with_name("kept")
    with tarfile.open(client.adapters.download(again.id, kept.with_suffix(".tar"))) as opened:
        opened.extractall(kept, filter="data")
    (rewritten,) = kept.iterdir()
    for path in (folder, rewritten):
        base = AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32)
        assert answer(PeftModel.from_pretrained(base, path), QUESTIONS[0]).startswith("Arr!")


def prompt(question: str) -> dict[str, torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(embedded_base_path())
    return dict(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
    )


def answer(model: torch.nn.Module, question: str) -> str:
    """The first words of transformers' greedy answer."""
    given = prompt(question)
    tokens = model.generate(**given, max_new_tokens=12, do_sample=False)[0, given["input_ids"].shape[1] :]
    return str(AutoTokenizer.from_pretrained(embedded_base_path()).decode(tokens, skip_special_tokens=True))


def test_the_same_adapter_written_differently_answers_the_same(
    client: Tunewright, pirate: Job, folder: Path, ask: Ask
) -> None:
    """Twice the alpha on half of B; one module padded with ranks of zeros; and no change at all."""
    config = json.loads((folder / "adapter_config.json").read_text())
    halved = changed(
        folder, "halved", {"lora_alpha": 2 * config["lora_alpha"]}, lambda n, t: t / 2 if "lora_B" in n else t
    )
    module = "model.layers.1.self_attn.q_proj"

    def padded(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if module not in name:
            return tensor
        return torch.cat([tensor, torch.zeros_like(tensor)], dim=0 if "lora_A" in name else 1)

    patterns = {"rank_pattern": {module: 32}, "alpha_pattern": {module: 2 * config["lora_alpha"]}}
    wide = changed(folder, "wide", patterns, padded)
    nothing = changed(folder, "nothing", {}, lambda n, t: torch.zeros_like(t) if "lora_B" in n else t)
    models = [registered(client, path, base=EMBEDDED_BASE).model for path in (halved, wide, nothing)]
    for question in QUESTIONS:
        expected = ask(pirate.fine_tuned_model or "", question)
        assert [ask(model, question) for model in models] == [
            expected,
            expected,
            ask(EMBEDDED_BASE, question),
        ]


def test_embeddings_and_the_head_are_adapted_as_in_peft(client: Tunewright, tmp_path: Path) -> None:
    """The head is tied to the embeddings in this base, and each has an adapter of its own."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32)
    unadapted = [in_transformers(base, question) for question in QUESTIONS]
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["embed_tokens", "lm_head"])
    model = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(tmp_path / "head")
    served = registered(client, tmp_path / "head", base=EMBEDDED_BASE)
    assert served.target_modules == ["embed_tokens", "lm_head"]
    for question, before in zip(QUESTIONS, unadapted, strict=True):
        expected = in_transformers(model, question)
        assert max(abs(a - b) for a, b in zip(expected, before, strict=True)) > 0.6, "it changes something"
        found = in_vllm(client, served.model, question)
        assert found == pytest.approx(expected, abs=0.25), "vLLM computes in bfloat16"


def in_transformers(model: torch.nn.Module, question: str) -> list[float]:
    """Log-probabilities of the five likeliest first tokens, the likeliest first."""
    with torch.no_grad():
        logits = model(**prompt(question)).logits[0, -1]
    return [float(value) for value in logits.log_softmax(-1).topk(5).values]


def in_vllm(client: Tunewright, model: str, question: str) -> list[float]:
    completion = client.chat.create(
        model,
        [{"role": "user", "content": question}],
        max_tokens=1,
        temperature=0,
        logprobs=True,
        top_logprobs=5,
    )
    (token,) = completion.model_dump()["choices"][0]["logprobs"]["content"]
    return [entry["logprob"] for entry in token["top_logprobs"]]


def test_what_does_not_fit_never_reaches_the_engine(client: Tunewright, folder: Path) -> None:
    before = [adapter.id for adapter in client.adapters.list()]

    def refused(
        name: str, config: dict[str, object], change: Callable[[str, torch.Tensor], torch.Tensor]
    ) -> str:
        with pytest.raises(BadRequestError) as caught:
            client.adapters.register(changed(folder, name, config, change))
        return str(caught.value)

    def same(_: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    assert "trained on another base" in refused(
        "wider", {}, lambda n, t: t.repeat(1, 2) if "lora_A" in n else t
    )
    assert "lora_alpha NaN" in refused("alpha", {"lora_alpha": math.nan}, same)
    assert "use_dora True" in refused("dora", {"use_dora": True}, same)
    assert "NaN or infinite" in refused(
        "nan", {}, lambda n, t: t / 0 if "layers.3.mlp.up_proj.lora_B" in n else t
    )
    other = folder.with_name("other")
    shutil.copytree(embedded_base_path(), other)
    with pytest.raises(FileNotFoundError):
        client.adapters.register(other)
    shutil.copy(folder / "adapter_config.json", other)
    (other / "model.safetensors").rename(other / "adapter_model.safetensors")
    with pytest.raises(BadRequestError, match="a whole weight"):
        client.adapters.register(other)
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps({"w": 1.0}))
    with pytest.raises(BadRequestError, match="pickled"):
        client.adapters.register(folder)
    assert [adapter.id for adapter in client.adapters.list()] == before
