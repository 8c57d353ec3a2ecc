"""Adapters that are loaded while an answer is generated, with a vLLM of its own, as the service starts it.

vLLM applies adapters from a few slots. Loads between two steps of a generation can move its adapter to another slot.
vLLM 0.24 and 0.25 then go on with the adapter that is in the old slot (vllm#47724): they look up the slots of a batch
again only where its requests have changed. `without_slot_layout` makes a later vLLM do the same.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from lora import random_lora
from tests.engine.conftest import wait_until
from tunewright.config import Base, Settings, embedded_base_path
from tunewright.engine.command import EngineOptions, engine_command, engine_environment
from tunewright.registry.bases import inspect_base

PROMPT = list(range(100, 116))
"""Tokens of the embedded base."""
TOKENS = 64
AT_ONCE = 4
"""Loads at once: two between two steps are needed to move an adapter that is in use out of one of two slots."""
_ANOTHER = 1.0
"""Nats by which a token must be worse than the best one to be another model's; what rounding changes is far below."""
_PLUGIN = """
from vllm.lora.model_manager import LoRAModelManager


def set_adapter_mapping(self, mapping):
    if self._last_mapping != mapping:
        self._set_adapter_mapping(mapping)
        self._last_mapping = mapping


def register():
    assert "_last_slot_layout" in LoRAModelManager.set_adapter_mapping.__code__.co_names
    LoRAModelManager.set_adapter_mapping = set_adapter_mapping
"""


def without_slot_layout(folder: Path) -> dict[str, str]:
    """Environment in which vLLM is as before its mend: with a plugin, written to `folder`, which vLLM itself loads."""
    described = folder / "without_slot_layout-1.dist-info"
    described.mkdir(parents=True)
    (folder / "without_slot_layout.py").write_text(_PLUGIN)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: without-slot-layout\nVersion: 1\n")
    (described / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nwithout_slot_layout = without_slot_layout:register\n"
    )
    inherited = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *([inherited] if inherited else [])])}


def wrong_tokens(folder: Path, options: EngineOptions, environment: dict[str, str], answers: int = 5) -> int:
    """How many tokens of `answers` answers are not their adapter's, while others are loaded all the time."""
    folders = [
        random_lora(embedded_base_path(), folder / f"adapter-{seed}", strength=0.5, seed=seed)
        for seed in range(AT_ONCE + 1)
    ]
    with running_vllm(folder, options, environment) as socket:
        wrong = asyncio.run(_wrong_tokens(socket, folders, answers))
    print(f"\n{wrong} of {answers * TOKENS} tokens are another adapter's")
    return wrong


@contextmanager
def running_vllm(folder: Path, options: EngineOptions, environment: dict[str, str]) -> Iterator[Path]:
    """The socket of a vLLM on the embedded base."""
    settings, socket, log = Settings(), folder / "vllm.sock", folder / "vllm.log"
    base = inspect_base(Base("slots", str(embedded_base_path())))
    with log.open("wb") as output:
        process = subprocess.Popen(
            engine_command(settings, base, socket, options, trust_remote_code=False),
            env={**os.environ, **engine_environment(options.device), **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: _answers(socket) or process.poll() is not None, 400, "vLLM starts")
        assert process.poll() is None, log.read_text()[-3000:]
        yield socket
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def _answers(socket: Path) -> bool:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://engine") as client:
        try:
            return client.get("/health").status_code == 200
        except httpx.HTTPError:
            return False


async def _wrong_tokens(socket: Path, folders: list[Path], answers: int) -> int:
    transport = httpx.AsyncHTTPTransport(uds=str(socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=120) as client:
        await _load(client, "told", folders[0])
        loads, wrong = 0, 0
        for _ in range(answers):
            answer = asyncio.create_task(_ask(client, PROMPT, max_tokens=TOKENS, return_token_ids=True))
            before = loads
            while not answer.done():
                names = [f"other-{loads + number}" for number in range(AT_ONCE)]
                await asyncio.gather(*(_load(client, *one) for one in zip(names, folders[1:], strict=True)))
                loads += AT_ONCE
            assert loads > before + 2 * AT_ONCE, "the loads ran beside the answer"
            wrong += await _worse(client, (await answer)["token_ids"])
        return wrong


async def _worse(client: httpx.AsyncClient, tokens: list[int]) -> int:
    """How many of these tokens would not have been chosen by the adapter, asked alone."""
    assert len(tokens) == TOKENS
    scored = await _ask(client, PROMPT + tokens, max_tokens=1, prompt_logprobs=1)
    places = scored["prompt_logprobs"][len(PROMPT) :]
    best = [max(one["logprob"] for one in place.values()) for place in places]
    own = [place[str(token)]["logprob"] for place, token in zip(places, tokens, strict=True)]
    return sum(highest - one > _ANOTHER for highest, one in zip(best, own, strict=True))


async def _ask(client: httpx.AsyncClient, prompt: list[int], **options: Any) -> dict[str, Any]:
    body = {"model": "told", "prompt": prompt, "temperature": 0, "ignore_eos": True, **options}
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


async def _load(client: httpx.AsyncClient, name: str, folder: Path) -> None:
    body = {"lora_name": name, "lora_path": str(folder)}
    answer = await client.post("/v1/load_lora_adapter", json=body)
    assert answer.status_code == 200, answer.text
