"""Output tokens/s with several adapters in one load, against one adapter alone and the base alone, alternated.

    python -m benchmarks.mixed_adapters                      # starts a service on the embedded base
    python -m benchmarks.mixed_adapters --url http://127.0.0.1:8000 --base my-base --base-path /models/my-base

Adapters have random weights (rank 8, every linear module), so their answers mean nothing, but their cost does.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import aiohttp
import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import save_file
from tests.engine.conftest import start_service, wait_ready

from tunewright.config import EMBEDDED_BASE, embedded_base_path
from tunewright_client import Adapter, Tunewright

RANK = 8


def random_adapter(base: Path, folder: Path, seed: int, rank: int = RANK) -> Path:
    """A PEFT folder with random weights for every linear module in the layers of `base`, which is not loaded."""
    generator = torch.Generator().manual_seed(seed)
    tensors, modules = {}, set()
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                if ".layers." not in name or not name.endswith("_proj.weight"):
                    continue
                rows, columns = opened.get_slice(name).get_shape()
                module = name.removesuffix(".weight")
                modules.add(module.rsplit(".", 1)[1])
                down = torch.randn(rank, columns, generator=generator) * columns**-0.5
                up = torch.randn(rows, rank, generator=generator) * 0.01
                tensors[f"base_model.model.{module}.lora_A.weight"] = down
                tensors[f"base_model.model.{module}.lora_B.weight"] = up
    folder.mkdir(parents=True)
    LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=modules, task_type="CAUSAL_LM", inference_mode=True
    ).save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


async def load(url: str, models: list[str], streams: int, tokens: int) -> float:
    """Output tokens/s over `streams` concurrent streams of `tokens` tokens, spread evenly over the models."""

    async def one(session: aiohttp.ClientSession, number: int) -> int:
        body = {
            "model": models[number % len(models)], "prompt": f"{number} times upon a time", "max_tokens": tokens,
            "ignore_eos": True, "stream": True, "temperature": 0.8, "seed": number,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        used = 0
        async with session.post(f"{url}/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                if b'"completion_tokens":' in line:
                    used = int(line.split(b'"completion_tokens":')[1].split(b",")[0].strip(b" }\n"))
        return used

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        began = time.perf_counter()
        counts = await asyncio.gather(*(one(session, number) for number in range(streams)))
        took = time.perf_counter() - began
    assert counts == [tokens] * streams, counts
    return sum(counts) / took


async def measure(url: str, base: str, adapters: list[str], options: argparse.Namespace) -> None:
    print(f"{len(adapters)} adapters, {options.tokens} tokens a stream; output tokens/s, medians")
    print(f"{'streams':>8}{'base':>9}{'one':>9}{'mixed':>9}   mixed / one (min to max)   one / base")
    for streams in options.streams:
        for models in ([base], adapters):
            await load(url, models, streams, options.tokens)  # warm-up, not counted
        rows = []
        for _ in range(options.rounds):
            plain = await load(url, [base], streams, options.tokens)
            one = await load(url, adapters[:1], streams, options.tokens)
            mixed = await load(url, adapters, streams, options.tokens)
            rows.append((plain, one, mixed, mixed / one, one / plain))
        plain, one, mixed, ratio, cost = (statistics.median(column) for column in zip(*rows, strict=True))
        spread = f"{ratio:.3f} ({min(r[3] for r in rows):.3f} to {max(r[3] for r in rows):.3f})"
        print(f"{streams:>8}{plain:>9.0f}{one:>9.0f}{mixed:>9.0f}   {spread:<24}   {cost:.3f}", flush=True)


def wait_checked(client: Tunewright, adapter_id: str) -> Adapter:
    """Wait until the parity check of the adapter has ended."""
    while (adapter := client.adapters.retrieve(adapter_id)).state == "checking":
        time.sleep(0.5)
    return adapter


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="URL of a running service; by default one is started")
    parser.add_argument("--base", default=EMBEDDED_BASE)
    parser.add_argument(
        "--base-path", type=Path, default=embedded_base_path(), help="to make adapters for it"
    )
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--streams", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="tunewright-bench-"))
    service = None
    if options.url is None:
        service = start_service(root / "data", "--parity", "off")
        wait_ready(service)
    url = options.url or service.url  # type: ignore[union-attr]
    try:
        with Tunewright(base_url=url, timeout=300) as client:
            registered = [
                client.adapters.register(
                    random_adapter(options.base_path, root / str(seed), seed),
                    base=options.base,
                    suffix=f"mixed-{seed}",
                )
                for seed in range(options.adapters)
            ]
            began = time.perf_counter()
            checked = [wait_checked(client, adapter.id) for adapter in registered]
            verdicts = Counter(adapter.parity.verdict if adapter.parity else None for adapter in checked)
            print(f"parity checks: {time.perf_counter() - began:.1f} s, {dict(verdicts)}", flush=True)
            asyncio.run(measure(url, options.base, [adapter.model for adapter in registered], options))
            for adapter in registered:
                client.adapters.delete(adapter.id, force=True)
    finally:
        if service is not None:
            service.stop()
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
