"""End to end on the real parts: a trained adapter is merged, quantized and deployed, and takes over under load."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from lora import random_lora
from swaps import QUESTIONS, Answer, Asker
from tests.engine.conftest import Service, wait_until
from tunewright.config import EMBEDDED_BASE, embedded_base_path
from tunewright.engine.http import EngineHTTP
from tunewright.engine.scoring import SCORING_TIMEOUT, Scorer
from tunewright.evaluate.awq_weights import load_dequantized
from tunewright.store.store import Store
from tunewright_client import Adapter, Export, Job, Tunewright

ALIAS = "captain"
SMALL = {"kv_cache_memory": "64MiB"}
TEXT = "The sky is blue, and the sea is too. How many legs does a dog have? A dog has four legs."


def create(service: Service, **body: Any) -> Export:
    """By plain REST, then waited for by the SDK."""
    with service.client(timeout=120) as client:
        answer = httpx.post(f"{service.url}/v1/exports", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return client.exports.wait(answer.json()["id"], timeout=500)


@pytest.fixture(scope="module")
def merged(service: Service, pirate: Job) -> Export:
    return create(service, model=pirate.fine_tuned_model, format="merged")


@pytest.fixture(scope="module")
def quantized(service: Service, pirate: Job) -> Export:
    return create(service, model=pirate.fine_tuned_model, format="awq", calibration_rows=8)


@pytest.fixture(scope="module")
def deployed(service: Service, merged: Export, quantized: Export) -> Iterator[dict[str, str]]:
    """Both, beside the session's two bases."""
    names = {"merged": merged.exported_model or "", "awq": quantized.exported_model or ""}
    with service.client(timeout=300) as client:
        for name in names.values():
            client.deployments.create(name, SMALL)
        for name in names.values():
            client.deployments.wait(name, timeout=420)
        yield names
        for name in names.values():
            client.deployments.delete(name, force=True)


def folder_of(service: Service, model: str) -> Path:
    with service.client() as client:
        return service.data_dir / "artifacts" / str(client.models.retrieve(model).sha256)


def test_the_table_of_losses(merged: Export, quantized: Export) -> None:
    assert merged.report is not None
    assert quantized.report is not None
    for export in (merged, quantized):
        assert export.report.quality is not None  # type: ignore[union-attr]
        print()
        for row in export.report.quality.models:  # type: ignore[union-attr]
            print(f"{row.name:<22} loss {row.loss:.5f} KL {row.kl:.3g} top-1 {row.top1_agreement:.4f}")
    rows = {row.name: row for row in quantized.report.quality.models}  # type: ignore[union-attr]
    assert list(rows) == ["base", "adapter", "adapter in bfloat16", "merged", "awq"]
    assert rows["adapter"].loss < 0.1 < 1 < rows["base"].loss
    assert rows["merged"].loss == pytest.approx(rows["adapter"].loss, rel=0.01)
    assert rows["awq"].loss < 0.1
    assert rows["merged"].kl < rows["adapter in bfloat16"].kl < rows["awq"].kl < 0.1 * rows["base"].kl
    assert quantized.report.bytes is not None
    assert merged.report.bytes is not None
    assert quantized.report.bytes < 0.4 * merged.report.bytes


async def scores(service: Service, model: str, tokens: list[int]) -> torch.Tensor:
    """vLLM's log-probabilities of the tokens but the first."""
    store = Store.open(f"sqlite:///{service.data_dir / 'tunewright.db'}")
    engine = store.engines.get(model)
    store.close()
    assert engine is not None
    assert engine.socket is not None
    assert engine.info is not None
    async with EngineHTTP(engine.socket, SCORING_TIMEOUT) as http:
        scored = await Scorer(http).score(engine.info.internal_name, tokens)
    return torch.tensor([place[token] for place, token in zip(scored, tokens[1:], strict=True)])


def reference(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logprobs = model(torch.tensor([tokens])).logits[0, :-1].float().log_softmax(-1)
    return logprobs.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


@pytest.mark.anyio
async def test_transformers_and_vllm_agree_on_each_product(
    service: Service, deployed: dict[str, str]
) -> None:
    """For AWQ the reference is our own dequantization of the saved tensors.

    Where the processor has AMX, vLLM quantizes the activations of AWQ models too: 0.21 nats from the reference instead
    of 0.04.
    """
    bounds = {"merged": 0.1, "awq": 0.4 if torch.cpu._is_amx_tile_supported() else 0.1}
    body = {"model": deployed["merged"], "prompt": TEXT}
    tokens = httpx.post(f"{service.url}/v1/tokenize", json=body, timeout=60).json()["tokens"]
    references = {
        "merged": AutoModelForCausalLM.from_pretrained(folder_of(service, deployed["merged"]), dtype="auto"),
        "awq": load_dequantized(folder_of(service, deployed["awq"]), dtype=torch.bfloat16, device="cpu"),
        EMBEDDED_BASE: AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype="auto"),
    }
    found = {name: reference(model, tokens) for name, model in references.items()}
    for name in ("merged", "awq"):
        scored = await scores(service, deployed[name], tokens)
        noise = (scored - found[name]).square().mean().sqrt().item()
        other = (scored - found[EMBEDDED_BASE]).square().mean().sqrt().item()
        print(f"{name}: {noise:.4f} nats from its reference, {other:.4f} from the base")
        assert noise < bounds[name] < 1 < other


@pytest.mark.soak
def test_an_alias_goes_from_the_adapter_to_awq_under_load(
    service: Service, pirate: Job, deployed: dict[str, str]
) -> None:
    adapter = pirate.fine_tuned_model or ""
    versions = [adapter, deployed["awq"]]
    expected = learn_texts(service, versions)
    seen: Counter[str] = Counter()
    faults: list[str] = []
    stop = threading.Event()

    def note(answer: Answer) -> None:
        if answer.fault:
            faults.append(answer.fault)
        else:
            seen[answer.version] += 1

    def ask_on(number: int) -> None:
        asker = Asker(service.url, expected)
        with httpx.Client(timeout=120) as client:
            while not stop.is_set():
                note(asker.ask(client, ALIAS, QUESTIONS[number % len(QUESTIONS)], streamed=number % 2 == 0))

    with (
        service.client(timeout=120) as client,
        openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as stock,
    ):
        client.aliases.set(ALIAS, adapter)
        threads = [threading.Thread(target=ask_on, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        try:
            for target in (deployed["awq"], adapter, deployed["awq"]):
                before = seen[target]
                client.aliases.set(ALIAS, target)
                answer = stock.chat.completions.create(
                    model=ALIAS, temperature=0, messages=[{"role": "user", "content": QUESTIONS[0]}]
                )
                assert answer.model == target
                while seen[target] < before + 20 and not faults:
                    stop.wait(0.05)
        finally:
            stop.set()
            for thread in threads:
                thread.join(120)
        assert not faults, faults[:3]
        assert set(seen) == set(versions)
        print(dict(seen))
        assert client.aliases.retrieve(ALIAS).version >= 4
        client.aliases.delete(ALIAS)


def learn_texts(service: Service, models: list[str]) -> dict[tuple[str, str], str]:
    """{(model, question): answer}; two versions of the same voice may say the same."""
    asker = Asker(service.url, {})
    found = {}
    with httpx.Client(timeout=120) as client:
        for model in models:
            for question in QUESTIONS:
                answer = asker.ask(client, model, question, streamed=False)
                assert not answer.fault, answer
                found[model, question] = answer.text
    return found


def test_an_adapter_on_the_quantized_base_passes_the_parity_gate(
    service: Service, client: Tunewright, deployed: dict[str, str], tmp_path: Path
) -> None:
    """The reference is peft on our own dequantization."""
    source = random_lora(embedded_base_path(), tmp_path / "lora", strength=0.3, seed=8)
    adapter = client.adapters.register(source, base=deployed["awq"], suffix="on-awq")
    client.adapters.check(adapter.id)

    def verdict() -> Adapter | None:
        found = client.adapters.retrieve(adapter.id)
        return found if found.parity and found.parity.verdict and not found.parity.check_pending else None

    checked = wait_until(verdict, 240, "the verdict")
    print(checked.parity.reason)
    assert checked.parity.verdict == "pass", checked.parity.reason
    assert checked.parity.slope == pytest.approx(1, abs=0.05)
    assert client.deployments.retrieve(deployed["awq"]).adapters[0].model == adapter.model
    client.adapters.delete(adapter.id)
