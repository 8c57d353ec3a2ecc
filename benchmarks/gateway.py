"""The cost of the gateway: output tokens/s through Tunewright against vLLM's own socket, alternated.

    python benchmarks/gateway.py --url http://127.0.0.1:8000 --socket /tmp/tunewright-.../engine-0.sock

Both send the same streamed requests to the same base; the ratio counts, not the absolute numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time

import aiohttp


async def load(session: aiohttp.ClientSession, url: str, model: str, streams: int, tokens: int) -> float:
    """Output tokens/s over `streams` concurrent streams of `tokens` tokens."""
    body = {
        "model": model, "prompt": "Once upon a time", "max_tokens": tokens, "ignore_eos": True, "stream": True,
        "temperature": 0.8,
    }  # fmt: skip

    async def one() -> int:
        count = 0
        async with session.post(f"{url}/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                count += line.startswith(b'data: {"id"')
        return count

    began = time.perf_counter()
    counts = await asyncio.gather(*(one() for _ in range(streams)))
    return sum(counts) / (time.perf_counter() - began)


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--socket", required=True, help="the engine's unix socket")
    parser.add_argument("--model", default="tunewright-tiny")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    direct = aiohttp.ClientSession(connector=aiohttp.UnixConnector(options.socket, limit=0))
    through = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    async with direct, through:
        async with direct.get("http://engine/v1/models") as response:
            internal = json.loads(await response.text())["data"][0]["id"]
        print(f"{'streams':>8} {'vLLM direct':>12} {'gateway':>12} {'ratio (median, min to max)':>30}")
        for streams in options.streams:
            await load(direct, "http://engine", internal, streams, options.tokens)  # warm-up, not counted
            rows = []
            for _ in range(options.rounds):
                alone = await load(direct, "http://engine", internal, streams, options.tokens)
                ours = await load(through, options.url, options.model, streams, options.tokens)
                rows.append((alone, ours, ours / alone))
            alone, ours, ratio = (statistics.median(column) for column in zip(*rows, strict=True))
            spread = f"{ratio:.3f} ({min(r[2] for r in rows):.3f} to {max(r[2] for r in rows):.3f})"
            print(f"{streams:>8} {alone:>12.0f} {ours:>12.0f} {spread:>30}")


if __name__ == "__main__":
    asyncio.run(main())
