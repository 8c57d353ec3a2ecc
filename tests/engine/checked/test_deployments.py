"""Models beside the bases, with a real vLLM: they answer as their weights do, take adapters, disturb no other."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine.conftest import DEMO, FAST, Service, wait_until
from tests.swaps import Asker
from tunewright.config import EMBEDDED_BASE
from tunewright_client import BadRequestError, DeploymentFailedError, Job, NotFoundError, Tunewright

BOT = "support-bot"
QUESTIONS = ("What color is the sky?", "How many legs does a dog have?", "What sound does a cow make?")


@pytest.fixture(scope="module")
def service(checking_service: Service) -> Service:
    return checking_service


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough rows of the demo to change how the model talks."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join((DEMO / "train.jsonl").open().readlines()[:96]))
    return path


@pytest.fixture(scope="module")
def jobs(service: Service, rows: Path) -> tuple[Job, Job]:
    """A fully fine-tuned model and an adapter, both trained to talk like a pirate."""
    with service.client() as client:
        full = {"type": "full", "learning_rate": 1e-3, "n_epochs": 2, "batch_size": 16}
        made = [
            client.jobs.create(EMBEDDED_BASE, rows, suffix=suffix, seed=7, tuning=tuning)
            for suffix, tuning in (("full", full), ("pirate", FAST))
        ]
        first, second = (client.jobs.wait(job.id, timeout=400) for job in made)
        return first, second


@pytest.fixture(scope="module")
def full(service: Service, jobs: tuple[Job, Job]) -> str:
    """Deployed, and ready."""
    name = jobs[0].fine_tuned_model
    assert name
    with service.client() as client:
        client.deployments.create(name, {"kv_cache_memory": "64MiB"}).wait(timeout=240)
    return name


def greedy(folder: Path, question: str, tokens: int) -> list[int]:
    """The answer of transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        said = model.generate(**prompt, max_new_tokens=tokens, do_sample=False)
    return [int(token) for token in said[0, prompt["input_ids"].shape[1] :]]


def answer(client: Tunewright, model: str, question: str, tokens: int = 16) -> str:
    messages = [{"role": "user", "content": question}]
    return client.chat.create(model, messages, temperature=0, max_tokens=tokens).text


@pytest.mark.timeout(900)
def test_it_answers_as_its_weights_do_in_transformers(
    service: Service, client: Tunewright, jobs: tuple[Job, Job], full: str
) -> None:
    folder = service.data_dir / "artifacts" / str(client.models.retrieve(full).sha256)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers, expected = [], []
    for question in QUESTIONS:
        answers.append(answer(client, full, question))
        expected.append(tokenizer.decode(greedy(folder, question, 16), skip_special_tokens=True))
    assert answers == expected
    assert answers != [answer(client, EMBEDDED_BASE, question) for question in QUESTIONS]
    shown = client.deployments.retrieve(full)
    assert (shown.state, shown.device) == ("ready", "cpu")
    assert shown.memory_bytes is not None
    assert shown.memory_bytes > 300 * 2**20
    assert shown.options["kv_cache_memory"] == 64 * 2**20
    assert client.models.retrieve(full).state == "ready"


@pytest.mark.timeout(600)
def test_one_that_vllm_refuses_tells_its_reason_and_leaves_the_others(client: Tunewright, full: str) -> None:
    """One option that the model does not have; the first deployment answers all the while."""
    before = answer(client, full, QUESTIONS[0])
    with pytest.raises(
        DeploymentFailedError, match=r"max_model_len \(4096\) is greater than the derived"
    ) as failed:
        client.deployments.create("other", {"max_model_len": 4096}).wait(timeout=300)
    assert failed.value.deployment.log_tail
    assert answer(client, full, QUESTIONS[0]) == before
    assert client.ready().ready
    with pytest.raises(BadRequestError, match="could not be started"):
        answer(client, "other", QUESTIONS[0])
    client.deployments.delete("other")
    with pytest.raises(NotFoundError):
        answer(client, "other", QUESTIONS[0])


@pytest.mark.timeout(600)
@pytest.mark.soak
def test_adapters_on_it_are_trained_checked_and_served(
    client: Tunewright, full: str, rows: Path, tmp_path: Path
) -> None:
    job = client.jobs.create(full, rows, suffix="more", seed=3, tuning=FAST)
    done = client.jobs.wait(job.id, timeout=400)
    name = done.fine_tuned_model
    assert name
    trained = client.adapters.retrieve(name)
    assert (trained.base, trained.state) == (full, "loaded")
    assert trained.parity is not None
    assert trained.parity.verdict == "pass"
    assert answer(client, name, QUESTIONS[0])
    archive = client.adapters.download(name, tmp_path / "adapter.tar")
    registered = client.adapters.register(archive, base=full, suffix="again")
    checked = wait_until(
        lambda: (now := client.adapters.retrieve(registered.id)).state in ("loaded", "quarantined") and now,
        240,
    )
    assert checked.parity.verdict == "pass", checked.parity.reason
    held = {adapter.model: adapter.state for adapter in client.deployments.retrieve(full).adapters}
    assert held[name] == held[registered.model] == "loaded"
    client.adapters.delete(registered.id)


@pytest.mark.timeout(600)
@pytest.mark.soak
def test_an_alias_goes_from_an_adapter_to_the_deployment_under_load(
    service: Service, client: Tunewright, jobs: tuple[Job, Job], full: str
) -> None:
    """And back, and the deployment is deleted while requests run: none fails, every answer is its version's."""
    adapter = jobs[1].fine_tuned_model
    assert adapter
    expected = {(m, q): answer(client, m, q, 24) for m in (adapter, full) for q in QUESTIONS}
    client.aliases.set(BOT, adapter)
    stop = threading.Event()
    seen: list[Any] = []

    def keep_asking(number: int) -> None:
        asker = Asker(service.url, expected)
        with httpx.Client(timeout=120) as http:
            while not stop.is_set():
                seen.append(asker.ask(http, BOT, QUESTIONS[number % 3], streamed=number % 2 == 0))

    threads = [threading.Thread(target=keep_asking, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(3)
    client.aliases.set(BOT, full)
    time.sleep(3)
    with pytest.raises(BadRequestError, match=f"in use by aliases: {BOT}"):
        client.deployments.delete(full)
    client.aliases.set(BOT, adapter)
    deleted = client.deployments.delete(full)
    assert deleted.deleted
    time.sleep(1)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert [one.fault for one in seen if one.fault] == []
    versions = [one.version for one in seen]
    print(json.dumps({version: versions.count(version) for version in set(versions)}))
    assert set(versions) == {adapter, full}
    with pytest.raises(BadRequestError, match="not served now"):
        answer(client, full, QUESTIONS[0])
    client.aliases.delete(BOT)
