"""A real vLLM loads a model that was quantized here, and computes what its numbers mean, also with an adapter."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from transformers import AutoTokenizer

from lora import random_lora
from tunewright.config import embedded_base_path
from tunewright.engine.command import engine_environment
from tunewright.engine.http import EngineHTTP
from tunewright.engine.scoring import SCORING_TIMEOUT, Scorer
from tunewright.evaluate.awq_weights import AwqWeights
from tunewright.evaluate.folder import Logprobs
from tunewright.evaluate.streamed import streamed_model
from tunewright.export.awq_quantizer import AwqQuantizer
from tunewright.export.quantizer import QuantizeOptions, pack
from tunewright.rows.chat import ChatEncoder

pytestmark = pytest.mark.engine
EMBEDDED_MODEL = embedded_base_path()
DEMO = EMBEDDED_MODEL.parent / "demo"


def rows(name: str, count: int) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    lines = (DEMO / name).read_text().splitlines()[:count]
    encoder = ChatEncoder(tokenizer)
    return [encoder.examples(json.loads(line))[0].input_ids for line in lines]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("awq")
    torch.set_num_threads(
        1
    )  # many small steps: several threads wait for each other where the machine is busy
    AwqQuantizer().quantize(
        EMBEDDED_MODEL,
        folder / "model",
        rows=pack(rows("train.jsonl", 8)),
        options=QuantizeOptions(),
        device="cpu",
        on_layer=lambda *_: None,
        work=folder / "work",
    )
    return folder / "model"


@pytest.fixture(scope="module")
def engine(quantized: Path) -> Iterator[str]:
    """The engine's socket. In float16, which keeps the scales as they are stored."""
    with tempfile.TemporaryDirectory(prefix="tw") as folder:
        socket, log = Path(folder) / "s", quantized.parent / "engine.log"
        command = [
            sys.executable, "-m", "tunewright.engine.server", "vllm.entrypoints.openai.api_server",
            "--model", str(quantized), "--served-model-name", "base", "--uds", str(socket), "--dtype", "float16",
            "--enforce-eager", "--kv-cache-memory-bytes", str(2**28), "--enable-lora", "--max-lora-rank", "8",
        ]  # fmt: skip
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | engine_environment("cpu")
            )
        try:
            _wait(process, str(socket), log)
            yield str(socket)
        finally:
            process.terminate()
            process.wait(60)


@pytest.mark.parametrize("with_adapter", [False, True])
@pytest.mark.anyio
async def test_vllm_computes_what_the_quantized_numbers_mean(
    engine: str, quantized: Path, tmp_path: Path, with_adapter: bool
) -> None:
    asked = rows("validation.jsonl", 8)
    adapter = (
        random_lora(EMBEDDED_MODEL, tmp_path / "adapter", strength=0.3, seed=3) if with_adapter else None
    )
    if adapter:
        with _client(engine) as client:
            body = {"lora_name": "adapter", "lora_path": str(adapter)}
            client.post("/v1/load_lora_adapter", json=body).raise_for_status()
    scored = await scores(engine, "adapter" if adapter else "base", asked)

    model = streamed_model(
        quantized, weights=AwqWeights(quantized), device="cpu", dtype=torch.float32, adapter=adapter
    )
    differences = []
    for tokens, places in zip(asked, scored, strict=True):
        with torch.inference_mode():
            logprobs = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].log_softmax(-1)
        differences += [
            place[token] - logprobs[at, token].item()
            for at, (token, place) in enumerate(zip(tokens[1:], places, strict=True))
        ]
    assert math.sqrt(sum(value**2 for value in differences) / len(differences)) < 0.005  # 0.0015 seen


async def scores(socket: str, model: str, asked: list[list[int]]) -> list[Logprobs]:
    async with EngineHTTP(socket, SCORING_TIMEOUT) as http:
        return [await Scorer(http).score(model, tokens) for tokens in asked]


def _client(socket: str) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=socket), base_url="http://engine", timeout=60)


def _wait(process: subprocess.Popen[bytes], socket: str, log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with _client(socket) as client:
                if client.get("/health").status_code == 200:
                    return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise AssertionError(f"vLLM did not start: {log.read_text()[-3000:]}")
