"""The cost of the gateway: streams through Tunewright against the engine's own socket, alternated, in one run.

    python -m benchmarks.gateway                    # a real service in front of a stand-in for vLLM
    python -m benchmarks.gateway --url http://127.0.0.1:8000 --model my-base --socket /tmp/tunewright-.../engine-0.sock

The load comes from several processes, each stream on a connection of its own, all of a round at once. `first` is
how much later the p50 of the first tokens, and the last of them, come than from the engine itself. The processor time
of the api's process does not depend on what else the machine does; it is measured where the api runs here, by rounds of
one token (a request) and of `--tokens` (the chunks). Prints a table, and writes JSON to `--json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing as mp
import os
import random
import re
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from socket import create_connection as connect
from typing import Any

import psutil
import uvloop
from tests.engine.conftest import Service, start_service, wait_ready

from tunewright.config import embedded_base_path

BASE = "tiny"
STAND_IN = Path(__file__).parent / "stand_in"
_TIMEOUT = 300.0
_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')


@dataclass(frozen=True)
class Side:
    """Where requests are sent: a host and a port, or a unix socket; and to which models."""

    models: tuple[str, ...]
    host: str = ""
    port: int = 0
    socket: str = ""


@dataclass
class Round:
    """What the streams of one round got; times are in seconds after its start."""

    first: list[float] = field(default_factory=list)
    chunks: int = 0
    tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    ended: float = 0.0
    """`time.time()`"""
    cpu: float = 0.0
    """Seconds of processor time of the api."""


class _Stream(asyncio.Protocol):
    """One request on a connection of its own. It reads as little of the answer as a count needs: the chunks, and the
    number of tokens at the end, since vLLM joins the tokens of a stream that it cannot send at once."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._tail = b""
        self.chunks = 0
        self.tokens = 0
        self.first: float | None = None
        self.failure = ""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self.first is None and not self._tail and not data.startswith(b"HTTP/1.1 200"):
            self._end(data[:200].decode(errors="replace"))
            return
        chunks = data.count(b'data: {"id"')
        if chunks and self.first is None:
            self.first = time.time()
        self.chunks += chunks
        self._tail = (self._tail + data)[-1024:]
        if b"data: [DONE]" in self._tail:
            self.chunks -= 1  # that of the usage
            found = _TOKENS.findall(self._tail)
            self.tokens = int(found[-1]) if found else 0
            self._end("")

    def connection_lost(self, error: Exception | None) -> None:
        self._end(f"the connection was lost: {error!r}")

    def _end(self, failure: str) -> None:
        if not self.done.done():
            self.failure = failure
            self.done.set_result(None)
            self._transport.close()


def _request(model: str, tokens: int, seed: int) -> bytes:
    body = {
        "model": model, "prompt": f"{seed} once upon a time there was", "max_tokens": tokens, "ignore_eos": True,
        "stream": True, "temperature": 0.8, "seed": seed, "stream_options": {"include_usage": True},
    }  # fmt: skip
    text = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(text) + text


async def _one(side: Side, tokens: int, seed: int, round_: Round, start: float) -> None:
    loop = asyncio.get_running_loop()
    request = _request(random.Random(seed).choice(side.models), tokens, seed)

    def stream() -> _Stream:
        return _Stream(request)

    try:
        async with asyncio.timeout(_TIMEOUT):
            if side.socket:
                _, protocol = await loop.create_unix_connection(stream, side.socket)
            else:
                _, protocol = await loop.create_connection(stream, side.host, side.port)
            await protocol.done
    except (OSError, TimeoutError) as error:
        round_.failures[repr(error)] += 1
        return
    round_.chunks += protocol.chunks
    round_.tokens += protocol.tokens
    if protocol.first is not None:
        round_.first.append(protocol.first - start)
    if protocol.failure or protocol.tokens != tokens:
        round_.failures[protocol.failure or f"{protocol.tokens} of {tokens} tokens"] += 1


async def _many(side: Side, tokens: int, seeds: range, start: float) -> Round:
    round_ = Round()
    await asyncio.sleep(start - time.time() - 0.005)
    while time.time() < start:
        pass
    await asyncio.gather(*(_one(side, tokens, seed, round_, start) for seed in seeds))
    round_.ended = time.time()
    return round_


def _work(connection: Connection) -> None:
    """Runs in a child process: does the rounds that it is sent."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with suppress(EOFError):  # the parent has ended
        while True:
            connection.send(uvloop.run(_many(*connection.recv())))


class Load:
    """Processes that send the requests. `api` is the process whose time is measured."""

    def __init__(self, processes: int, api: psutil.Process | None) -> None:
        context = mp.get_context("spawn")
        self._ends = []
        self._api = api
        self._seed = 0
        self._idle = 0.0
        """What the api takes while nothing is asked, as a share of a processor."""
        for _ in range(processes):
            ours, theirs = context.Pipe()
            context.Process(target=_work, args=(theirs,), daemon=True).start()
            self._ends.append(ours)
        before = self._cpu()
        time.sleep(2)
        self._idle = (self._cpu() - before) / 2

    def run(self, side: Side, streams: int, tokens: int) -> Round:
        """One round: all streams at once. `first` is sorted."""
        start = time.time() + 0.3
        ends = self._ends[:streams]
        began, before = time.monotonic(), self._cpu()
        for number, end in enumerate(ends):
            share = streams // len(ends) + (number < streams % len(ends))
            end.send((side, tokens, range(self._seed, self._seed + share), start))
            self._seed += share
        whole = Round()
        for end in ends:
            part: Round = end.recv()
            whole.first += part.first
            whole.chunks += part.chunks
            whole.tokens += part.tokens
            whole.failures += part.failures
            whole.ended = max(whole.ended, part.ended - start)
        whole.cpu = self._cpu() - before - self._idle * (time.monotonic() - began)
        whole.first.sort()
        return whole

    def _cpu(self) -> float:
        """Seconds of all threads, to the nanosecond."""
        if self._api is None:
            return 0.0
        tasks = Path(f"/proc/{self._api.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _freed(side: Side, socket: str, rounds: int) -> list[float]:
    """Seconds from a client's disconnect until the stand-in has no request any more, sorted."""
    import httpx

    found = []
    with httpx.Client(transport=httpx.HTTPTransport(uds=socket)) as engine:
        for seed in range(rounds):
            with connect((side.host, side.port)) as client:
                client.sendall(_request(side.models[0], 100_000, seed))
                while b"data: {" not in client.recv(65536):
                    pass
            left = time.monotonic()
            while engine.get("http://engine/running").json()["running"]:
                time.sleep(0.001)
            found.append(time.monotonic() - left)
    return sorted(found)


def _row(load: Load, sides: tuple[Side, Side], streams: int, tokens: int, rounds: int) -> dict[str, Any]:
    """The numbers of one line of the table: medians over alternated rounds."""
    for side in sides:
        load.run(side, streams, tokens)  # connections, caches
    pairs = [tuple(load.run(side, streams, tokens) for side in sides) for _ in range(rounds)]
    short = [load.run(sides[1], streams, 1) for _ in range(rounds)]
    rates = [[one.tokens / one.ended for one in pair] for pair in pairs]
    ratios = sorted(through / direct for direct, through in rates)
    request = statistics.median(one.cpu for one in short) / streams
    chunks = statistics.median(pair[1].chunks for pair in pairs) / streams
    chunk = (statistics.median(pair[1].cpu for pair in pairs) / streams - request) / max(1, chunks - 1)
    median, last = (
        [statistics.median(pair[side].first[at(len(pair[side].first))] for pair in pairs) for side in (0, 1)]
        for at in (lambda count: count // 2, lambda count: count - 1)
    )
    failures: Counter[str] = sum((one.failures for pair in pairs for one in pair), Counter())
    return {
        "streams": streams,
        "tokens": tokens,
        "direct_tok_s": round(statistics.median(rate[0] for rate in rates)),
        "through_tok_s": round(statistics.median(rate[1] for rate in rates)),
        "ratio": [round(statistics.median(ratios), 3), round(ratios[0], 3), round(ratios[-1], 3)],
        "first_s": {
            "direct": [round(median[0], 5), round(last[0], 5)],
            "through": [round(median[1], 5), round(last[1], 5)],
        },
        "cpu_us": {"request": round(request * 1e6), "chunk": round(chunk * 1e6, 1)},
        "failures": dict(failures),
    }


def _print(row: dict[str, Any] | None = None) -> None:
    if row is None:
        print(
            f"{'streams':>8} {'direct':>8} {'through':>8} {'ratio (min to max)':>22} {'first, p50 / last, ms':>24}"
            f" {'CPU us: request':>16} {'chunk':>6} {'failed':>7}"
        )
        return
    ratio = "{:.3f} ({:.3f} to {:.3f})".format(*row["ratio"])
    added = [(b - a) * 1e3 for a, b in zip(row["first_s"]["direct"], row["first_s"]["through"], strict=True)]
    print(
        f"{row['streams']:>8} {row['direct_tok_s']:>8} {row['through_tok_s']:>8} {ratio:>22} "
        f"{f'{added[0]:.1f} / {added[1]:.1f}':>24} {row['cpu_us']['request']:>16} {row['cpu_us']['chunk']:>6} "
        f"{sum(row['failures'].values()):>7}",
        flush=True,
    )


def _names(socket: str) -> list[str]:
    """The names that the engine itself has: its base first."""
    import httpx

    with httpx.Client(transport=httpx.HTTPTransport(uds=socket)) as client:
        return [model["id"] for model in client.get("http://engine/v1/models").json()["data"]]


def _socket_of(service: Service, base: str) -> str:
    record = json.loads((service.data_dir / "engines" / base / "process.json").read_text())
    command = psutil.Process(record["command"]["pid"]).cmdline()
    return command[command.index("--uds") + 1]


def _api_of(process: int) -> psutil.Process | None:
    """The api's process among the children of a service."""
    children = psutil.Process(process).children(recursive=True)
    return next((child for child in children if child.cmdline()[:1] == ["tunewright: api"]), None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--url", help="a running service; without it one is started, with a stand-in for vLLM"
    )
    parser.add_argument("--socket", help="the engine's unix socket, where the service runs already")
    parser.add_argument("--pid", type=int, help="the api's process, where the service runs already")
    parser.add_argument("--model", default=BASE, help="the base, an adapter or an alias of the base")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument(
        "--step", type=float, default=0.006, help="seconds between the stand-in's tokens of a stream"
    )
    parser.add_argument("--places", type=int, default=256, help="streams that the stand-in runs at once")
    parser.add_argument("--alias", action="store_true", help="ask for an alias of the base")
    parser.add_argument("--profile", type=Path, help="write the api's cProfile of all rounds to this file")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.url:
        host, _, port = options.url.removeprefix("http://").rstrip("/").partition(":")
        api = psutil.Process(options.pid) if options.pid else None
        results = _measure(options, options.socket, host, int(port or 80), options.model, api)
    else:
        with tempfile.TemporaryDirectory(prefix="tunewright-bench-") as folder:
            results = _with_stand_in(options, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def _with_stand_in(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    path = os.pathsep.join([str(STAND_IN), *(entry for entry in sys.path if entry)])
    environment = {"PYTHONPATH": path, "STAND_IN_STEP": str(options.step)}
    if options.profile:
        environment["BENCH_PROFILE"] = str(options.profile.absolute())
    service = start_service(
        folder / "data", "--base", f"{BASE}={embedded_base_path()}", "--device", "cpu", "--parity", "off",
        "--max-requests", "8192", f"--vllm-arg=--max-num-seqs={options.places}",
        environment=environment,
    )  # fmt: skip
    try:
        wait_ready(service)
        model = BASE
        if options.alias:
            model = "bench-alias"
            with service.client() as client:
                client.aliases.set(model, BASE)
        api = _api_of(service.process.pid)
        port = int(service.url.rpartition(":")[2])
        if options.profile and api:
            api.send_signal(signal.SIGUSR1)
        found = _measure(options, _socket_of(service, BASE), "127.0.0.1", port, model, api)
        if options.profile and api:
            api.send_signal(signal.SIGUSR2)
            time.sleep(1)
        return found
    finally:
        service.stop()


def _measure(
    options: argparse.Namespace, socket: str, host: str, port: int, model: str, api: psutil.Process | None
) -> dict[str, Any]:
    sides = Side((_names(socket)[0],), socket=socket), Side((model,), host, port)
    load = Load(options.processes, api)
    _print()
    rows = []
    for streams in options.streams:
        rows.append(_row(load, sides, streams, options.tokens, options.rounds))
        _print(rows[-1])
    results = {"model": model, "date": time.strftime("%Y-%m-%d"), "rows": rows}
    if not options.url:
        freed = _freed(sides[1], socket, 20)
        results["freed_s"] = {"median": round(statistics.median(freed), 5), "max": round(freed[-1], 5)}
        print(
            f"freed after a disconnect: median {statistics.median(freed) * 1e3:.1f} ms, max {freed[-1] * 1e3:.1f} ms"
        )
    return results


if __name__ == "__main__":
    main()
