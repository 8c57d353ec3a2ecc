"""1,000 adapters on one base: pages list them, memory stays flat, and any one answers as in peft."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine.conftest import Service
from tests.kills import find
from tests.lora import CONFIG, WEIGHTS, random_lora
from tunewright.config import EMBEDDED_BASE, embedded_base_path
from tunewright_client import Tunewright

pytestmark = pytest.mark.soak

MANY = 1000
ASKED = 12
PROMPT = "The color of the sky is"
MIB = 1 << 20


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters of rank 8 on two modules, each with different weights."""
    root = tmp_path_factory.mktemp("thousand")
    first = random_lora(
        embedded_base_path(), root / "first", strength=0.5, seed=0, modules=["q_proj", "v_proj"]
    )
    tensors, config = load_file(first / WEIGHTS), (first / CONFIG).read_text()
    made = []
    for number in range(MANY):
        torch.manual_seed(number)
        folder = root / f"{number:04d}"
        folder.mkdir()
        (folder / CONFIG).write_text(config)
        changed = {
            name: t * (1 + torch.randn(t.shape[0], 1)) if "lora_B" in name else t
            for name, t in tensors.items()
        }
        save_file(changed, folder / WEIGHTS, metadata={"format": "pt"})
        made.append(folder)
    return made


@pytest.fixture(scope="module")
def registered(service: Service, folders: list[Path]) -> Iterator[tuple[list[str], list[int]]]:
    """(models of the folders, resident bytes of the api and the engine worker at each hundredth)"""
    resident = []
    with service.client(timeout=120) as client:
        models = []
        for number, folder in enumerate(folders):
            if number % 100 == 0:
                resident.append(memory(service))
            models.append(
                client.adapters.register(folder, base=EMBEDDED_BASE, suffix="many", load=False).model
            )
        resident.append(memory(service))
        yield models, resident
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda model: client.adapters.delete(model, force=True), models))


def memory(service: Service) -> int:
    pids = {*find(service, "api"), *find(service, "engine worker"), *find(service, "scheduler")}
    return sum(psutil.Process(pid).memory_info().rss for pid in pids)


def test_pages_list_them_all(client: Tunewright, registered: tuple[list[str], list[int]]) -> None:
    models, _ = registered
    listed, after, slowest = [], None, 0.0
    while True:
        began = time.monotonic()
        page = client.adapters.list(after=after, limit=100)
        slowest = max(slowest, time.monotonic() - began)
        listed += [adapter.model for adapter in page.data]
        if not page.has_more:
            break
        after = page.data[-1].id
    assert set(models) <= set(listed)
    assert len(listed) == len(set(listed))
    print(f"slowest page of 100: {slowest * 1000:.0f} ms")
    assert slowest < 2


def test_memory_is_flat(registered: tuple[list[str], list[int]]) -> None:
    _, resident = registered
    print("MiB at each hundred:", [round(one / MIB) for one in resident])
    assert resident[-1] - resident[1] < 40 * MIB


def test_any_one_answers_as_in_peft(
    client: Tunewright, registered: tuple[list[str], list[int]], folders: list[Path]
) -> None:
    models, _ = registered
    tokenizer = AutoTokenizer.from_pretrained(embedded_base_path())
    base = AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32).eval()
    given = tokenizer(PROMPT, return_tensors="pt")
    asked = random.Random(4).sample(range(MANY), ASKED)
    adapted = PeftModel.from_pretrained(base, folders[asked[0]], adapter_name=str(asked[0])).eval()
    references, answers = [], []
    for number in asked:
        if number != asked[0]:
            adapted.load_adapter(folders[number], adapter_name=str(number))
        adapted.set_adapter(str(number))
        with torch.no_grad():
            references.append(torch.log_softmax(adapted(**given).logits[0, -1], -1))
        completion = client.completions.create(
            model=models[number], prompt=PROMPT, max_tokens=1, temperature=0, logprobs=5
        )
        logprobs = json.loads(completion.model_dump_json())["choices"][0]["logprobs"]["top_logprobs"][0]
        answers.append(sorted(logprobs.items(), key=lambda item: -item[1])[:3])

    def distance(answer: list[tuple[str, float]], reference: torch.Tensor) -> float:
        """In nats, over the answer's likeliest tokens: vLLM computes in bf16, the reference in float32."""
        best = {
            tokenizer.decode([int(token)]): float(reference[token]) for token in reference.topk(50).indices
        }
        return max(abs(best.get(token, -20.0) - value) for token, value in answer)

    for index, answer in enumerate(answers):
        distances = [distance(answer, reference) for reference in references]
        assert distances[index] < 0.15, asked[index]
        assert min(distances[:index] + distances[index + 1 :]) > distances[index], "another's answer"
