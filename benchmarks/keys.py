"""What 10,000 API keys cost a request: two services, one with one key and one with `--keys`, asked in turn.

    python -m benchmarks.keys

Both are real services in front of a stand-in for vLLM. Short rounds alternate between the service with one key and the
one with many, of which one is used. After them come rounds with another key of the many for each request, so that none
is in memory; these are told, and not compared with a bound. A request is sent every `--every` seconds, whether or not
the one before has been answered, on connections that are kept in a round. Times are from sending a request to the end
of its answer; the processor time of the api's process does not depend on what else the machine does. Prints a table,
writes JSON to `--json`, and exits with 1 where a request fails, or the p99 with many keys of which one is used is more
than `--most` times that with one key.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import uvloop
from benchmarks.gateway import BASE, STAND_IN
from sqlalchemy import insert
from tests.engine.conftest import Service, start_service, wait_ready

from tunewright.config import embedded_base_path
from tunewright.store.database import Database
from tunewright.store.keys import Scope, hash_of
from tunewright.store.store import Store
from tunewright.store.tables import api_keys

_OPERATOR = "the-operators-key-of-the-benchmark"
_PROJECTS = 100


class Side:
    """Requests to one service with some of its keys, and the seconds that they took."""

    def __init__(self, service: Service, keys: list[str]) -> None:
        self.url = service.url
        below = psutil.Process(service.process.pid).children(recursive=True)
        self._api = next(one for one in below if one.cmdline()[:1] == ["tunewright: api"])
        self.processor = 0.0
        """Seconds that the api's process has computed in the rounds."""
        self.keys: Iterator[str] = itertools.cycle(keys)
        self.seconds: list[float] = []
        self.failures: list[str] = []

    async def ask(self, session: aiohttp.ClientSession, tokens: int) -> None:
        body = {"model": BASE, "prompt": "x", "max_tokens": tokens, "ignore_eos": True, "stream": True}
        headers = {"Authorization": f"Bearer {next(self.keys)}"}
        began = time.monotonic()
        try:
            async with session.post(f"{self.url}/v1/completions", json=body, headers=headers) as response:
                end = (await response.read())[-200:]
        except (aiohttp.ClientError, TimeoutError) as error:
            self.failures.append(repr(error))
            return
        if end.rstrip().endswith(b"data: [DONE]"):
            self.seconds.append(time.monotonic() - began)
        else:
            self.failures.append(f"{response.status} {end!r}")

    def _processor(self) -> float:
        times = self._api.cpu_times()
        return times.user + times.system

    async def round(self, options: argparse.Namespace, seconds: float) -> None:
        before = self._processor()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            asked, at = [], time.monotonic()
            end = at + seconds
            while at < end:
                asked.append(asyncio.create_task(self.ask(session, options.tokens)))
                at += options.every
                await asyncio.sleep(max(0.0, at - time.monotonic()))
            await asyncio.gather(*asked)
        self.processor += self._processor() - before

    def percentile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

    def told(self) -> dict[str, Any]:
        times = {f"p{share * 100:g}_ms": round(self.percentile(share) * 1e3, 2) for share in (0.5, 0.9, 0.99)}
        times["api_processor_ms"] = round(self.processor * 1e3 / max(1, len(self.seconds)), 2)
        return {"requests": len(self.seconds), **times, "failures": self.failures[:3]}


def _make_keys(data_dir: Path, count: int) -> list[str]:
    """Put keys of as many projects as there may be into a new database. Returns them."""
    data_dir.mkdir(parents=True)
    database = Database(f"sqlite:///{data_dir / 'tunewright.db'}")
    database.upgrade()
    database.close()
    store = Store.open(database.url)
    try:
        projects = [store.projects.create(f"p{number}").id for number in range(min(count, _PROJECTS))]
        keys = [f"sk-tw-{secrets.token_urlsafe(32)}" for _ in range(count)]
        rows = [
            {
                "id": f"key-{number}", "project": projects[number % len(projects)], "name": "k", "hash": hash_of(key),
                "redacted": "sk-tw-...", "scopes": [Scope.INFER], "created_at": time.time(),
            }
            for number, key in enumerate(keys)
        ]  # fmt: skip
        with store.database.begin() as connection:
            connection.execute(insert(api_keys), rows)
    finally:
        store.close()
    return keys


def _start(stack: ExitStack, folder: Path, step: float) -> Service:
    path = os.pathsep.join([str(STAND_IN), *(entry for entry in sys.path if entry)])
    service = start_service(
        folder, "--base", f"{BASE}={embedded_base_path()}", "--device", "cpu", "--parity", "off",
        environment={"PYTHONPATH": path, "STAND_IN_STEP": str(step), "TUNEWRIGHT_API_KEY": _OPERATOR},
    )  # fmt: skip
    stack.callback(service.stop)
    return service


def _measure(options: argparse.Namespace, sides: dict[str, Side]) -> int:
    one, many, all_used = sides.values()
    for side in (one, many):  # what is done once is not measured
        uvloop.run(side.round(options, min(2.0, options.seconds)))
        side.seconds.clear()
        side.processor = 0.0
    for number in range(options.rounds):
        for side in (one, many) if number % 2 == 0 else (many, one):
            uvloop.run(side.round(options, options.seconds))
        print(f"round {number + 1} of {options.rounds}", flush=True)
    for _ in range(options.rounds):
        uvloop.run(all_used.round(options, options.seconds))
    results = {name: side.told() for name, side in sides.items()}
    for name, told in results.items():
        print(f"{name:>28}: {told}")
    ratio = many.percentile(0.99) / one.percentile(0.99)
    is_well = ratio <= options.most and not any(side.failures for side in sides.values())
    print(
        f"p99 with {options.keys} keys is {ratio:.2f} times that with one, at most {options.most:g}: "
        f"{'kept' if is_well else 'NOT KEPT'}; with all of them in use "
        f"{all_used.percentile(0.99) / one.percentile(0.99):.2f} times"
    )
    if options.json:
        told = {
            "date": time.strftime("%Y-%m-%d"),
            "keys": options.keys,
            "sides": results,
            "ratio_of_p99": ratio,
        }
        options.json.write_text(json.dumps(told, indent=1))
    return 0 if is_well else 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--every", type=float, default=0.02, help="seconds between requests")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round of one side")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=4, help="of an answer")
    parser.add_argument("--step", type=float, default=0.001, help="seconds of a step of the stand-in")
    parser.add_argument("--most", type=float, default=1.1, help="the largest ratio of the two p99")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["TUNEWRIGHT_API_KEY"] = _OPERATOR
    with tempfile.TemporaryDirectory(prefix="tunewright-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        one, many = _make_keys(folder / "one", 1), _make_keys(folder / "many", options.keys)
        services = [_start(stack, folder / kind, options.step) for kind in ("one", "many")]
        for service in services:
            wait_ready(service)
        sides = {
            "1 key": Side(services[0], one),
            f"{options.keys} keys, 1 in use": Side(services[1], many[:1]),
            f"{options.keys} keys, all in use": Side(services[1], many),
        }
        return _measure(options, sides)


if __name__ == "__main__":
    sys.exit(main())
