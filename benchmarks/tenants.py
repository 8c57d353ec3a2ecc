"""Two projects under load: what a project that floods costs another one, which sends a request now and then.

    python -m benchmarks.tenants                    # a real service in front of a stand-in for vLLM
    python -m benchmarks.tenants --url http://127.0.0.1:8000 --model my-base --quiet-key sk-... --noisy-key sk-...

Phases alternate in which the quiet project is alone, and in which the other one keeps `--flood` streams in flight, from
a process of its own. The quiet project sends a request every `--every` seconds, whether or not the one before has been
answered, so that a service that stalls is not asked less. Times are seconds from sending a request to the end of its
answer. Prints a table, writes JSON to `--json`, and exits with 1 where the p99 with the flood is more than `--most`
times the one without, or where a request of the quiet project fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing as mp
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from benchmarks.gateway import BASE, STAND_IN
from tests.engine.conftest import start_service, wait_ready

from tunewright.config import embedded_base_path

_OPERATOR = "the-operators-key-of-the-benchmark"
_TIMEOUT = 120.0


@dataclass(frozen=True)
class Target:
    """Where a project sends its requests."""

    url: str
    model: str
    key: str
    tokens: int

    def session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT),
            headers={"Authorization": f"Bearer {self.key}"},
        )

    async def ask(self, session: aiohttp.ClientSession) -> tuple[float, str]:
        """One streamed completion: its seconds, and the failure or ""."""
        body = {
            "model": self.model,
            "prompt": "x",
            "max_tokens": self.tokens,
            "ignore_eos": True,
            "stream": True,
        }
        began = time.monotonic()
        try:
            async with session.post(f"{self.url}/v1/completions", json=body) as response:
                end = (await response.read())[-200:]
                failure = "" if end.rstrip().endswith(b"data: [DONE]") else f"{response.status} {end!r}"
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            failure = repr(error)
        return time.monotonic() - began, failure


@dataclass
class Phase:
    seconds: list[float] = field(default_factory=list)
    """Of the quiet project's requests that were answered."""
    failures: Counter[str] = field(default_factory=Counter)
    flooded: int = 0
    """Requests of the other project that were answered."""
    refused: int = 0
    """Those that were not, by its limits for example."""

    def add(self, other: Phase) -> None:
        self.seconds += other.seconds
        self.failures += other.failures
        self.flooded += other.flooded
        self.refused += other.refused

    def percentile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

    def told(self) -> dict[str, Any]:
        times = {f"p{share * 100:g}_ms": round(self.percentile(share) * 1e3, 1) for share in (0.5, 0.99)}
        return {
            "requests": len(self.seconds), **times, "max_ms": round(self.percentile(1.0) * 1e3, 1),
            "failures": dict(self.failures), "flooded": self.flooded, "refused": self.refused,
        }  # fmt: skip


async def _quiet(target: Target, seconds: float, every: float) -> Phase:
    phase, asked = Phase(), []
    async with target.session() as session:
        await target.ask(session)  # connects
        end = time.monotonic() + seconds
        at = time.monotonic()
        while at < end:
            asked.append(asyncio.create_task(target.ask(session)))
            at += every
            await asyncio.sleep(max(0.0, at - time.monotonic()))
        for took, failure in await asyncio.gather(*asked):
            if failure:
                phase.failures[failure] += 1
            else:
                phase.seconds.append(took)
    return phase


async def _flood(target: Target, streams: int, connection: Connection) -> None:
    """Keep `streams` requests in flight until something can be read; sends how many were answered, and were not."""
    answered = refused = 0

    async def one(session: aiohttp.ClientSession) -> None:
        nonlocal answered, refused
        while True:
            _, failure = await target.ask(session)
            if failure:
                refused += 1
                await asyncio.sleep(0.02)  # else it would measure how fast requests are refused
            else:
                answered += 1

    async with target.session() as session:
        tasks = [asyncio.create_task(one(session)) for _ in range(streams)]
        while not connection.poll():
            await asyncio.sleep(0.02)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    connection.recv()
    connection.send((answered, refused))


def _flooding(target: Target, streams: int, connection: Connection) -> None:
    uvloop.run(_flood(target, streams, connection))


def _with_flood(options: argparse.Namespace, quiet: Target, noisy: Target) -> Phase:
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_flooding, args=(noisy, options.flood, theirs), daemon=True)
    process.start()
    try:
        time.sleep(options.settle)
        phase = uvloop.run(_quiet(quiet, options.seconds, options.every))
        ours.send("stop")
        phase.flooded, phase.refused = ours.recv()
    finally:
        process.join(10)
        process.kill()
    return phase


def _measure(options: argparse.Namespace, quiet: Target, noisy: Target) -> int:
    alone, beside = Phase(), Phase()
    uvloop.run(_quiet(quiet, min(2.0, options.seconds), options.every))  # what is done once is not measured
    for number in range(options.rounds):
        alone.add(uvloop.run(_quiet(quiet, options.seconds, options.every)))
        beside.add(_with_flood(options, quiet, noisy))
        print(f"round {number + 1}: alone {alone.told()}, beside the flood {beside.told()}", flush=True)
    ratio = beside.percentile(0.99) / alone.percentile(0.99)
    is_well = ratio <= options.most and not alone.failures and not beside.failures
    results = {
        "date": time.strftime("%Y-%m-%d"), "flood": options.flood, "tokens": options.tokens,
        "alone": alone.told(), "beside": beside.told(), "ratio_of_p99": round(ratio, 3), "most": options.most,
    }  # fmt: skip
    print(f"p99 beside the flood is {ratio:.2f} times the p99 alone, at most {options.most:g}: "
          f"{'kept' if is_well else 'NOT KEPT'}")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 0 if is_well else 1


def _with_stand_in(options: argparse.Namespace, folder: Path) -> int:
    path = os.pathsep.join([str(STAND_IN), *(entry for entry in sys.path if entry)])
    service = start_service(
        folder / "data", "--base", f"{BASE}={embedded_base_path()}", "--device", "cpu", "--parity", "off",
        f"--vllm-arg=--max-num-seqs={options.places}",
        environment={"PYTHONPATH": path, "STAND_IN_STEP": str(options.step), "TUNEWRIGHT_API_KEY": _OPERATOR},
    )  # fmt: skip
    try:
        os.environ["TUNEWRIGHT_API_KEY"] = _OPERATOR
        wait_ready(service)
        targets = []
        with service.client(api_key=_OPERATOR) as client:
            for name, limits in (("quiet", {}), ("noisy", dict(options.limit))):
                project = client.projects.create(name)
                if limits:
                    client.projects.limit(project.id, limits)
                key = client.api_keys.create(project.id, name).value
                targets.append(Target(service.url, BASE, key, options.tokens))
        return _measure(options, *targets)
    finally:
        service.stop()


def _limit(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    return name, int(number)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flood", type=int, default=64, help="streams of the other project in flight")
    parser.add_argument("--every", type=float, default=0.1, help="seconds between requests of the quiet one")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a phase")
    parser.add_argument(
        "--settle", type=float, default=2.0, help="seconds of the flood before it is measured"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--most", type=float, default=1.3, help="the largest ratio of the two p99")
    parser.add_argument(
        "--limit", type=_limit, action="append", default=[], metavar="NAME=NUMBER",
        help="a limit of the flooding project, such as concurrent_requests=16",
    )  # fmt: skip
    parser.add_argument("--places", type=int, default=32, help="sequences that the stand-in runs at once")
    parser.add_argument("--step", type=float, default=0.006, help="seconds of a step of the stand-in")
    parser.add_argument("--url", help="a running service, instead of one with a stand-in for vLLM")
    parser.add_argument("--model", default=BASE)
    parser.add_argument("--quiet-key")
    parser.add_argument("--noisy-key")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.url:
        url = options.url.rstrip("/")
        keys = (options.quiet_key or "", options.noisy_key or "")
        return _measure(options, *(Target(url, options.model, key, options.tokens) for key in keys))
    with tempfile.TemporaryDirectory(prefix="tunewright-bench-") as folder:
        return _with_stand_in(options, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
