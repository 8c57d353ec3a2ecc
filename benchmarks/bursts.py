"""Bursts of requests to a running service, with pauses as long as vLLM keeps an idle connection; counts failures.

    python -m benchmarks.bursts --url http://127.0.0.1:8000 --model tunewright-tiny --bursts 20 --requests 256

A pause begins when the last answer of a burst is complete. Half of the requests are streamed. Each request has its own
connection to the service, so that failures are those between the service and vLLM. Prints a table, then JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing as mp
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection

import aiohttp


@dataclass(frozen=True)
class Load:
    """The requests of one burst."""

    url: str
    model: str
    requests: int
    tokens: int
    api_key: str = ""
    timeout: float = 120.0
    """Timeout of a request in seconds."""


@dataclass
class Burst:
    """The results of one burst. Seconds are from the start of a request to its complete answer."""

    number: int
    pause: float
    """Seconds before the burst."""
    seconds: list[float] = field(default_factory=list)
    """Durations of the requests that were answered."""
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def requests(self) -> int:
        return len(self.seconds) + self.failures.total()

    def percentile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


async def _ask(session: aiohttp.ClientSession, load: Load, number: int) -> tuple[float, str]:
    """Send one request. Returns (seconds, the failure or "")."""
    body = {
        "model": load.model, "prompt": f"{number}: once upon a time", "max_tokens": load.tokens, "ignore_eos": True,
        "temperature": 0.8, "stream": number % 2 == 0,
    }  # fmt: skip
    began = time.monotonic()
    try:
        async with session.post(f"{load.url}/v1/completions", json=body) as response:
            text = await response.text()
        is_whole = not body["stream"] or text.rstrip().endswith("data: [DONE]")
        failure = "" if response.status == 200 and is_whole else f"{response.status}: {text[-200:]}"
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        failure = repr(error)
    return time.monotonic() - began, failure


async def _send(load: Load) -> list[tuple[float, str]]:
    headers = {"Authorization": f"Bearer {load.api_key}"} if load.api_key else {}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=load.timeout),
        headers=headers,
    ) as session:
        return await asyncio.gather(*(_ask(session, load, number) for number in range(load.requests)))


def _send_bursts(connection: Connection, load: Load) -> None:
    """Runs in a child process: sends one burst for each `True` that it receives."""
    while connection.recv():
        connection.send(asyncio.run(_send(load)))


def run(
    load: Load, *, bursts: int, processes: int, pauses: tuple[float, float], seed: int = 0
) -> list[Burst]:
    """Send the bursts, each from all processes together, and print a line of the table for each."""
    chance = random.Random(seed)
    context = mp.get_context("spawn")
    ends, children = [], []
    for number in range(processes):
        share = load.requests // processes + (number < load.requests % processes)
        ours, theirs = context.Pipe()
        child = context.Process(
            target=_send_bursts, args=(theirs, Load(**{**asdict(load), "requests": share})), daemon=True
        )
        child.start()
        ends.append(ours)
        children.append(child)
    print(
        f"{'burst':>6} {'pause s':>8} {'requests':>9} {'failed':>7} {'median s':>9} {'p99 s':>8} {'max s':>8}"
    )
    seen = []
    for number in range(1, bursts + 1):
        burst = Burst(number, chance.uniform(*pauses) if number > 1 else 0.0)
        time.sleep(burst.pause)
        for end in ends:
            end.send(True)
        for end in ends:
            for seconds, failure in end.recv():
                if failure:
                    burst.failures[failure] += 1
                else:
                    burst.seconds.append(seconds)
        print(
            f"{number:>6} {burst.pause:>8.2f} {burst.requests:>9} {burst.failures.total():>7} "
            f"{burst.percentile(0.5):>9.3f} {burst.percentile(0.99):>8.3f} {burst.percentile(1):>8.3f}",
            flush=True,
        )
        seen.append(burst)
    for end, child in zip(ends, children, strict=True):
        end.send(False)
        child.join()
    return seen


def summary(load: Load, seen: list[Burst]) -> dict[str, object]:
    """The results of all bursts, for JSON."""
    failures: Counter[str] = sum((burst.failures for burst in seen), Counter())
    return {
        "model": load.model,
        "bursts": len(seen),
        "requests": sum(burst.requests for burst in seen),
        "failed": failures.total(),
        "failures": dict(failures),
        "pauses": [round(burst.pause, 3) for burst in seen],
        "failed_by_burst": [burst.failures.total() for burst in seen],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="tunewright-tiny")
    parser.add_argument("--bursts", type=int, default=20)
    parser.add_argument("--requests", type=int, default=256, help="requests in one burst, over all processes")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--pause", type=float, nargs=2, default=(4.0, 6.0), metavar=("LEAST", "MOST"))
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--api-key", default="")
    parser.add_argument("--seed", type=int, default=0, help="seed of the pauses")
    options = parser.parse_args()
    load = Load(options.url, options.model, options.requests, options.tokens, options.api_key)
    seen = run(
        load,
        bursts=options.bursts,
        processes=options.processes,
        pauses=tuple(options.pause),
        seed=options.seed,
    )
    results = summary(load, seen)
    print(json.dumps(results, indent=1))
    sys.exit(bool(results["failed"]))


if __name__ == "__main__":
    main()
