"""Generations through the gateway, from the real vLLM, against transformers and peft as the reference."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine.conftest import DEMO, Service, wait_until
from tunewright.config import EMBEDDED_BASE, embedded_base_path
from tunewright_client import BadRequestError, Job, NotFoundError, Tunewright

QUESTION = "What color is the sky?"
CHAT = [{"role": "user", "content": QUESTION}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_color",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"thing": {"type": "string", "enum": ["sky", "grass"]}},
            "required": ["thing"],
            "additionalProperties": False,
        },
    },
}


def test_the_adapter_answers_as_its_data_says_and_the_base_as_before(
    pirate: Job, ask: Callable[[str, str], str]
) -> None:
    assert pirate.fine_tuned_model is not None
    for question in json.loads((DEMO / "questions.json").read_text()):
        base, tuned = ask(EMBEDDED_BASE, question), ask(pirate.fine_tuned_model, question)
        assert "matey" not in base
        assert tuned.startswith("Arr!")
        assert tuned.endswith("matey!")


def test_what_the_adapter_changes_in_vllm_is_what_it_changes_in_peft(
    client: Tunewright, service: Service, pirate: Job
) -> None:
    """Log-probabilities of held-out answers: slope and correlation of the adapter's effect, vLLM on peft."""
    assert pirate.fine_tuned_model is not None
    tokenizer = AutoTokenizer.from_pretrained(embedded_base_path())
    rows = [json.loads(line)["messages"] for line in (DEMO / "validation.jsonl").open()][:8]
    texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
    ids = [tokenizer(text)["input_ids"] for text in texts]

    base = AutoModelForCausalLM.from_pretrained(embedded_base_path(), dtype=torch.float32)
    sha256 = client.adapters.retrieve(pirate.fine_tuned_model).sha256
    expected_base = _reference(base, ids)
    adapted = PeftModel.from_pretrained(base, service.data_dir / "artifacts" / sha256)
    expected = _reference(adapted, ids)
    got_base = _from_vllm(client, EMBEDDED_BASE, ids)
    got = _from_vllm(client, pirate.fine_tuned_model, ids)

    noise = np.abs(got_base - expected_base).mean()
    slope, _ = np.polyfit(expected - expected_base, got - got_base, 1)
    correlation = np.corrcoef(expected - expected_base, got - got_base)[0, 1]
    print(f"slope {slope:.4f}, correlation {correlation:.4f}, base noise {noise:.4f} nats")
    assert noise < 0.1
    assert slope == pytest.approx(1, abs=0.05)
    assert correlation > 0.99


def _reference(model: torch.nn.Module, ids: list[list[int]]) -> np.ndarray:
    values = []
    for row in ids:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row])).logits[0].float().log_softmax(-1)
        values += [float(logits[i, token]) for i, token in enumerate(row[1:])]
    return np.array(values)


def _from_vllm(client: Tunewright, model: str, ids: list[list[int]]) -> np.ndarray:
    values = []
    for row in ids:
        answer = client.completions.create(
            model=model, prompt=row, max_tokens=1, temperature=0, prompt_logprobs=0
        )
        entries = answer.choices[0].model_extra["prompt_logprobs"][1:]
        values += [entry[str(token)]["logprob"] for entry, token in zip(entries, row[1:], strict=True)]
    return np.array(values)


def test_a_stream_says_what_the_whole_answer_says(client: Tunewright, pirate: Job) -> None:
    model = pirate.fine_tuned_model or ""
    whole = client.chat.create(model=model, messages=CHAT, temperature=0, logprobs=True, top_logprobs=2)
    assert whole.model == model
    assert len(whole.choices[0].logprobs["content"]) == whole.usage.completion_tokens
    with client.chat.create(model=model, messages=CHAT, temperature=0, stream=True) as stream:
        chunks = list(stream)
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert {chunk.model for chunk in chunks} == {model}


def test_structured_output_follows_its_schema(client: Tunewright) -> None:
    schema = {
        "type": "object",
        "properties": {"color": {"type": "string", "enum": ["red", "blue"]}},
        "required": ["color"],
    }
    answer = client.chat.create(
        model=EMBEDDED_BASE,
        messages=CHAT,
        temperature=0,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    )
    assert json.loads(answer.text)["color"] in ("red", "blue")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_color"}}])
def test_tools_are_called_through_the_family_s_parser(client: Tunewright, choice: object) -> None:
    answer = client.chat.create(
        model=EMBEDDED_BASE, messages=CHAT, temperature=0, max_tokens=100, tools=[TOOL], tool_choice=choice
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call["function"]["name"] == "get_color"
    assert json.loads(call["function"]["arguments"])["thing"] in ("sky", "grass")


def test_the_client_s_disconnect_aborts_the_request_in_vllm(service: Service) -> None:
    """A client leaves a long generation after its first tokens; the engine is idle long before it could have ended."""
    body = {
        "model": EMBEDDED_BASE, "prompt": "Once upon a time", "max_tokens": 1000, "min_tokens": 1000,
        "ignore_eos": True, "stream": True, "n": 8,
    }  # fmt: skip
    engine = httpx.Client(transport=httpx.HTTPTransport(uds=_socket(service)), base_url="http://engine")
    before = _metric(engine, "vllm:generation_tokens_total")
    with httpx.stream("POST", f"{service.url}/v1/completions", json=body, timeout=60) as response:
        assert next(response.iter_lines()).startswith("data:")
        assert _metric(engine, "vllm:num_requests_running") > 0
    left = time.monotonic()
    wait_until(lambda: _metric(engine, "vllm:num_requests_running") == 0, 5, "the engine has let go of it")
    made = _metric(engine, "vllm:generation_tokens_total") - before
    print(f"idle {time.monotonic() - left:.2f} s after the disconnect, {made:.0f} of 8000 tokens made")
    assert made < 4000


def test_an_idle_connection_lives_longer_than_vllms_own_5_s(service: Service) -> None:
    """Longer than the gateway keeps it, in fact: `test_engine_http` compares the two."""
    limits = httpx.Limits(keepalive_expiry=60)
    transport = httpx.HTTPTransport(uds=_socket(service), limits=limits)
    with httpx.Client(transport=transport, base_url="http://engine") as engine:
        first = engine.get("/health").extensions["network_stream"]
        time.sleep(7)
        assert engine.get("/health").extensions["network_stream"] is first


def _socket(service: Service) -> str:
    from tunewright.store.store import Store

    store = Store.open(f"sqlite:///{service.data_dir / 'tunewright.db'}")
    engine = store.engines.get(EMBEDDED_BASE)
    store.close()
    assert engine is not None
    assert engine.socket is not None
    return engine.socket


def _metric(engine: httpx.Client, name: str) -> float:
    lines = engine.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


def test_only_the_allowlist_of_vllm_is_reachable(service: Service) -> None:
    for path in (
        "/v1/load_lora_adapter",
        "/collective_rpc",
        "/sleep",
        "/metrics",
        "/server_info",
    ):
        for url in (service.url + path, service.url + "/v1" + path):
            assert httpx.post(url, json={"model": EMBEDDED_BASE}).status_code in (404, 405), url


def test_vllm_s_errors_come_in_openai_s_form_under_the_public_name(client: Tunewright, pirate: Job) -> None:
    with pytest.raises(BadRequestError, match="temperature"):
        client.chat.create(model=EMBEDDED_BASE, messages=CHAT, temperature=-1)
    with pytest.raises(BadRequestError, match="context length"):
        client.completions.create(model=pirate.fine_tuned_model or "", prompt="word " * 5000)
    with pytest.raises(NotFoundError):
        client.chat.create(model="ft:nobody::made", messages=CHAT)


def test_adapters_are_unloaded_and_loaded_while_requests_run(
    client: Tunewright, service: Service, pirate: Job
) -> None:
    """An unload fails no request and mixes no answers: a request that comes meanwhile loads the adapter again."""
    model = pirate.fine_tuned_model or ""
    answers: list[str] = []
    stop = threading.Event()

    def keep_asking() -> None:
        with service.client(max_retries=0) as own:
            while not stop.is_set():
                answers.append(own.chat.create(model=model, messages=CHAT, temperature=0).text)

    threads = [threading.Thread(target=keep_asking) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            seen = len(answers)
            wait_until(lambda seen=seen: len(answers) >= seen + 8, 30)
            client.adapters.unload(model)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(answers) == {"Arr! The sky be blue, matey!"}
    assert client.adapters.unload(model).state == "unloaded"
    assert client.models.retrieve(model).model_extra["state"] == "unloaded"
    assert client.chat.create(model=model, messages=CHAT, temperature=0).text == answers[0]
    assert client.adapters.retrieve(model).state == "loaded", "the request had it loaded"


def test_a_checkpoint_is_a_model_and_is_listed_once_it_is_loaded(
    client: Tunewright, pirate: Job, ask: Callable[[str, str], str]
) -> None:
    first = min(client.jobs.checkpoints(pirate.id), key=lambda c: c.step_number)
    name = first.fine_tuned_model_checkpoint
    assert name not in [model.id for model in client.models.list()]
    assert "Arr" in ask(name, QUESTION)
    assert name in [model.id for model in client.models.list()]
    client.adapters.unload(name)
    assert name not in [model.id for model in client.models.list()]


def test_a_download_is_a_peft_folder(client: Tunewright, pirate: Job, tmp_path: Path) -> None:
    import tarfile

    path = client.models.download(pirate.fine_tuned_model or "", tmp_path / "adapter.tar")
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = (p for p in tmp_path.iterdir() if p.is_dir())
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == EMBEDDED_BASE, "no machine's path leaves with it"
    base = AutoModelForCausalLM.from_pretrained(embedded_base_path())
    model = PeftModel.from_pretrained(base, folder)
    assert model.peft_config["default"].r == 16
