"""Other weights under the name and path of old ones: plain vLLM uses its cache of the old, the service does not.

vLLM's prefix cache knows an adapter by name and path. Here both are the content's hash (decision 0007).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file

from tests.engine.conftest import Service
from tests.swaps import engine_client, in_engine
from tunewright_client import Job, Tunewright

LONG = "What color is the sky? " * 40
"""Several blocks of the prefix cache."""
NOISE = 0.02
"""Nats between two computations of the same."""
Logprobs = dict[str, float]


@pytest.fixture
def pair(client: Tunewright, pirate: Job, service: Service, tmp_path: Path) -> tuple[Path, Path]:
    """(folder of the pirate's adapter, folder of another: the same with its change turned round)"""
    sha256 = client.adapters.retrieve(pirate.fine_tuned_model or "").sha256
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        shutil.copytree(service.data_dir / "artifacts" / sha256, folder)
    weights = second / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({name: -t if "lora_B" in name else t for name, t in tensors.items()}, weights)
    return first, second


@pytest.fixture
def engine(service: Service) -> Iterator[httpx.Client]:
    with engine_client(service) as opened:
        yield opened


def top_logprobs(completion: Any) -> Logprobs:
    return dict(completion["choices"][0]["logprobs"]["top_logprobs"][0])


def body(model: str) -> dict[str, Any]:
    return {"model": model, "prompt": LONG, "max_tokens": 1, "temperature": 0, "logprobs": 5}


def distance(one: Logprobs, other: Logprobs) -> float:
    """Largest difference in nats over the tokens that both return; 10 where the first tokens differ."""
    if max(one, key=one.__getitem__) != max(other, key=other.__getitem__):
        return 10.0
    return max(abs(one[token] - other[token]) for token in one.keys() & other.keys())


def test_plain_vllm_answers_from_the_old_weights_cache(
    service: Service, engine: httpx.Client, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """Where this fails because vLLM has fixed it, decision 0007 has one reason fewer."""

    def load(name: str, path: Path) -> None:
        engine.post(
            "/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path)}
        ).raise_for_status()

    def unload(name: str) -> None:
        engine.post("/v1/unload_lora_adapter", json={"lora_name": name}).raise_for_status()

    def ask(name: str) -> Logprobs:
        return top_logprobs(engine.post("/v1/completions", json=body(name)).raise_for_status().json())

    first, second = pair
    live = tmp_path / "live"
    shutil.copytree(first, live)
    held = in_engine(service)[1]
    loaded = []
    try:
        load("live", live)
        loaded.append("live")
        old = ask("live")
        unload("live")
        shutil.copytree(second, live, dirs_exist_ok=True)
        load("live", live)
        stale = ask("live")
        load("fresh", second)
        loaded.append("fresh")
        fresh = ask("fresh")
    finally:
        for name in loaded:
            unload(name)
        # the workers keep the weights whose names the server has removed
        for number in in_engine(service)[1] - held:
            engine.post("/collective_rpc", json={"method": "remove_lora", "args": [number]})
    assert distance(old, fresh) > 10 * NOISE, "the two adapters differ"
    assert distance(stale, fresh) > 10 * NOISE, "the same weights, and another answer"


def test_here_the_same_path_with_other_weights_is_another_adapter(
    client: Tunewright, service: Service, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = pair
    live = tmp_path / "live"
    shutil.copytree(first, live)

    def ask(model: str) -> Logprobs:
        answer = httpx.post(f"{service.url}/v1/completions", json=body(model), timeout=60)
        return top_logprobs(answer.raise_for_status().json())

    old = client.adapters.register(live, suffix="live")
    client.aliases.set("live", old.model)
    before = ask("live")
    client.adapters.unload(old.model)
    shutil.copytree(second, live, dirs_exist_ok=True)
    new = client.adapters.register(live, suffix="live")
    assert new.sha256 != old.sha256
    client.aliases.set("live", new.model)
    after = ask("live")
    elsewhere = client.adapters.register(second, suffix="elsewhere")
    assert distance(before, after) > 10 * NOISE
    assert distance(after, ask(elsewhere.model)) < NOISE
    client.aliases.set("live", old.model)
    assert distance(ask("live"), before) < NOISE, "and back"
    client.aliases.delete("live")
    for adapter in (old, new, elsewhere):
        client.adapters.delete(adapter.id)


def test_two_registrations_of_one_content_share_one_engine_adapter(
    client: Tunewright, service: Service, pair: tuple[Path, Path], ask: Callable[[str, str], str]
) -> None:
    """The engine frees the weights with the last of the names, not with the first."""
    first = client.adapters.register(pair[1], suffix="first")
    second = client.adapters.register(pair[1], suffix="second")
    question = "What color is the sky?"
    assert ask(first.model, question) == ask(second.model, question)

    def listed() -> list[str]:
        with engine_client(service) as engine:
            return [m["id"] for m in engine.get("/v1/models").json()["data"] if first.sha256 in m["id"]]

    assert len(listed()) == 1
    client.adapters.delete(first.id)
    assert len(listed()) == 1
    assert ask(second.model, question)
    client.adapters.delete(second.id)
    assert listed() == []
