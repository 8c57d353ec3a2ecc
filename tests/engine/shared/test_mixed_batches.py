"""What vLLM can sample, each with each in one batch: every request is answered, and scores are as if it were alone.

Other sequences of the base and of an adapter are generated all the time, so that no request is ever alone.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest

from evaluations import PROMPTS
from lora import random_lora
from tests.engine.conftest import Service, engine_runs
from tunewright.config import EMBEDDED_BASE, embedded_base_path

TEXT = "The sky is blue, and the sea is too. How many legs does a dog have?"
JSON = {"type": "object", "properties": {"sky": {"enum": ["blue", "red"]}}, "required": ["sky"]}
SCORED = {"echo": True, "logprobs": 1, "max_tokens": 1}
FEATURES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled with a seed": {"temperature": 1, "seed": 5, "top_p": 0.9, "top_k": 20, "min_p": 0.01},
    "logprobs": {"logprobs": 5},
    "prompt logprobs": {"prompt_logprobs": 2},
    "echo with logprobs": SCORED,
    "eight prompts with logprobs": {**SCORED, "prompt": PROMPTS},
    "several choices": {"n": 3, "temperature": 1},
    "beams": {"use_beam_search": True, "n": 2, "temperature": 0},
    "a JSON schema": {"structured_outputs": {"json": JSON}, "ignore_eos": False},
    "a regular expression": {"structured_outputs": {"regex": "[a-z]{3,5}"}, "ignore_eos": False},
    "penalties": {"presence_penalty": 1, "frequency_penalty": 1, "repetition_penalty": 1.2},
    "a bias and bad words": {"logit_bias": {"5": 5}, "bad_words": ["sky"]},
    "allowed tokens": {"allowed_token_ids": [5, 6, 7], "min_tokens": 3},
    "stops": {"stop": ["."], "stop_token_ids": [5], "ignore_eos": False},
    "streamed": {"stream": True, "stream_options": {"include_usage": True}},
}
Scores = dict[tuple[str, str], list[float]]
"""Log-probabilities of prompts, by model and feature."""
PAIRS = list(itertools.combinations_with_replacement(FEATURES, 2))


@pytest.fixture(scope="module")
def adapter(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Changes the log-probabilities by whole nats."""
    folder = tmp_path_factory.mktemp("adapter") / "noise"
    with service.client(timeout=120) as client:
        source = random_lora(embedded_base_path(), folder, strength=0.5, seed=11)
        name = client.adapters.register(source, base=EMBEDDED_BASE, suffix="noise").model
        client.adapters.load(name)
        yield name
        client.adapters.delete(name)


async def ask(client: httpx.AsyncClient, model: str, feature: str) -> httpx.Response:
    body = {"model": model, "prompt": TEXT, "max_tokens": 12, "ignore_eos": True, **FEATURES[feature]}
    return await client.post("/v1/completions", json=body)


def scores(answer: httpx.Response) -> list[float]:
    """Log-probabilities of the prompts' tokens but the first ones, of a request that echoes its prompts."""
    return [
        value
        for choice in answer.json()["choices"]
        for value in choice["logprobs"]["token_logprobs"][:-1]
        if value is not None
    ]


@asynccontextmanager
async def stories(client: httpx.AsyncClient, models: tuple[str, ...]) -> AsyncIterator[None]:
    """A long answer of each model at any time."""

    async def tell(model: str) -> None:
        while True:
            body = {"model": model, "prompt": "Once", "max_tokens": 100, "ignore_eos": True, "temperature": 1}
            (await client.post("/v1/completions", json=body)).raise_for_status()

    telling = [asyncio.create_task(tell(model)) for model in models]
    try:
        yield
        assert not any(task.done() for task in telling), "a story ended with an error"
    finally:
        for task in telling:
            task.cancel()
            with suppress(asyncio.CancelledError, httpx.HTTPError):
                await task


@pytest.mark.anyio
async def test_all_together_are_answered_and_scores_do_not_depend_on_the_batch(
    service: Service, adapter: str
) -> None:
    runs = engine_runs(service)
    async with httpx.AsyncClient(base_url=service.url, timeout=120) as client:
        alone = await scored_alone(client, adapter)
        async with stories(client, (EMBEDDED_BASE, adapter)):
            for _ in range(3):
                asked = [(model, feature) for feature in FEATURES for model in (EMBEDDED_BASE, adapter)]
                answers = await asyncio.gather(*(ask(client, *one) for one in asked))
                assert faults_of(dict(zip(asked, answers, strict=True)), alone) == []
    assert engine_runs(service) == runs


@pytest.mark.anyio
async def test_long_prompts_with_seeds_do_not_end_the_engine(service: Service) -> None:
    """They are read in several steps, as soon as there are several of them."""
    runs = engine_runs(service)
    prompts = [f"{number} is a number. " + TEXT * 25 for number in range(12)]
    async with httpx.AsyncClient(base_url=service.url, timeout=120) as client:
        bodies = [
            {"model": EMBEDDED_BASE, "prompt": prompt, "max_tokens": 4, "temperature": 1, "seed": 5}
            for prompt in prompts
        ]
        answers = await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))
    assert [answer.status_code for answer in answers] == [200] * len(prompts), answers[0].text
    assert engine_runs(service) == runs


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.anyio
async def test_each_pair_is_answered_and_scores_do_not_depend_on_the_batch(
    service: Service, adapter: str
) -> None:
    models = (EMBEDDED_BASE, adapter)
    runs = engine_runs(service)
    faults: list[str] = []
    async with httpx.AsyncClient(base_url=service.url, timeout=120) as client:
        alone = await scored_alone(client, adapter)
        async with stories(client, models):
            for number, pair in enumerate(PAIRS):
                asked = [(models[(number + place) % 2], feature) for place, feature in enumerate(pair)]
                answers = await asyncio.gather(*(ask(client, *one) for one in asked))
                found = faults_of(dict(zip(asked, answers, strict=True)), alone)
                faults += [f"{pair}: {fault}" for fault in found]
                assert engine_runs(service) == runs, f"{pair} ended the engine: {faults}"
    assert faults == []


async def scored_alone(client: httpx.AsyncClient, adapter: str) -> Scores:
    """The scores of the prompts when nothing else is asked, by base and adapter, which are known to differ."""
    models = (EMBEDDED_BASE, adapter)
    alone = {
        (model, feature): scores(await ask(client, model, feature))
        for model in models
        for feature in ("echo with logprobs", "eight prompts with logprobs")
    }
    first, second = (alone[model, "echo with logprobs"] for model in models)
    assert farthest(first, second) > 2, "the adapter is another model"
    return alone


def faults_of(answers: dict[tuple[str, str], httpx.Response], alone: Scores) -> list[str]:
    """What is wrong with these answers of one batch."""
    faults = []
    for one, answer in answers.items():
        if answer.status_code != 200 or "engine_unavailable" in answer.text:
            faults.append(f"{one} {answer.status_code} {answer.text[:200]}")
        elif one in alone and farthest(scores(answer), alone[one]) > 0.5:
            faults.append(f"{one} is {farthest(scores(answer), alone[one]):.2f} nats off")
    return faults


def farthest(found: list[float], expected: list[float]) -> float:
    """The greatest difference, in nats."""
    return max(abs(one - other) for one, other in zip(found, expected, strict=True))
