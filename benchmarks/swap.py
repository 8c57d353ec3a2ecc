"""The cost of swapping models, with a real vLLM on this machine: `make bench-swap`.

Trains two adapters on the embedded base, then measures, in one run:

- the time from the flip of an alias to the first answer of the new version, and of a cold load, under `--streams` that
  never stop; every answer is checked;
- the same without load, alternated with vLLM itself: a request to an adapter that is not loaded, through the
  service, against `/v1/load_lora_adapter` and the same request at vLLM's own socket.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import httpx
from tests.engine.conftest import Service, start_service, wait_ready
from tests.swaps import (
    ALIAS,
    QUESTIONS,
    Asker,
    Swapper,
    engine_client,
    in_engine,
    learn_answers,
    percentile,
    table,
    train,
)

from tunewright.config import EMBEDDED_BASE
from tunewright_client import Tunewright


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[4, 16], help="concurrent requests")
    parser.add_argument("--seconds", type=float, default=60, help="for each number of streams")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of loads, alternated with vLLM itself")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="tunewright-bench-"))
    service = start_service(root / "data")
    try:
        wait_ready(service)
        with service.client(timeout=120) as client:
            models = [EMBEDDED_BASE, *train(client, root, ("Alpha", "Bravo"))]
            expected = learn_answers(service, models)
            alternated(service, client, models, options.rounds)
            for streams in options.streams:
                swapper = Swapper(service, models, expected)
                seen = swapper.run(streams=streams, seconds=options.seconds, flip_every=0.5, cycle_every=1.5)
                print(f"\n{streams} streams, {sum(seen.answers.values())} answers, {len(seen.faults)} faults")
                print(table(seen), flush=True)
    finally:
        service.stop()
        shutil.rmtree(root, ignore_errors=True)


def alternated(service: Service, client: Tunewright, models: list[str], rounds: int) -> None:
    """Measure loads and flips without other requests, alternated with vLLM's part of them."""
    adapter, other = models[1], models[2]
    folder = service.data_dir / "artifacts" / client.adapters.retrieve(adapter).sha256
    asker = Asker(service.url, {})
    rows: dict[str, list[float]] = {"load": [], "vllm": [], "flip": [], "plain": []}
    with httpx.Client(timeout=120) as http, engine_client(service) as engine:
        for number in range(rounds):
            client.adapters.unload(adapter)
            began = time.perf_counter()
            answer = asker.ask(http, adapter, QUESTIONS[0], streamed=True)
            assert not answer.fault, answer.fault
            rows["load"].append(time.perf_counter() - began)
            rows["vllm"].append(vllm_load(service, engine, folder, f"bench-{number}"))

            target = (adapter, other)[number % 2]
            began = time.perf_counter()
            client.aliases.set(ALIAS, target)
            answer = asker.ask(http, ALIAS, QUESTIONS[0], streamed=True)
            rows["flip"].append(time.perf_counter() - began)
            assert answer.version == target
            rows["plain"].append(asker.ask(http, target, QUESTIONS[0], streamed=True).seconds)
    print(f"{'':<44}{'median':>9}{'p99':>9}   seconds, without load, to the whole answer")
    for name, key in (
        ("unloaded adapter, through the service", "load"),
        ("the same with vLLM's own load and socket", "vllm"),
        ("flip, and an answer of the new version", "flip"),
        ("an answer of that version by its own name", "plain"),
    ):
        print(f"{name:<44}{statistics.median(rows[key]):>9.3f}{percentile(rows[key], 0.99):>9.3f}")
    for name, ours, theirs in (("load", "load", "vllm"), ("flip", "flip", "plain")):
        ratios = [a / b for a, b in zip(rows[ours], rows[theirs], strict=True)]
        low, high = percentile(ratios, 0.1), percentile(ratios, 0.9)
        print(f"{name}: ratio {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f}, 10 % to 90 %)")


def vllm_load(service: Service, engine: httpx.Client, folder: Path, name: str) -> float:
    """Seconds of a load and an answer at vLLM's socket. The adapter is unloaded and removed afterwards."""
    held = in_engine(service)[1]
    body = {
        "model": name, "temperature": 0, "max_tokens": 24, "stream": True,
        "messages": [{"role": "user", "content": QUESTIONS[0]}],
    }  # fmt: skip
    began = time.perf_counter()
    engine.post(
        "/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder)}
    ).raise_for_status()
    with engine.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        for _ in answer.iter_lines():
            pass
    took = time.perf_counter() - began
    engine.post("/v1/unload_lora_adapter", json={"lora_name": name}).raise_for_status()
    for number in in_engine(service)[1] - held:
        engine.post("/collective_rpc", json={"method": "remove_lora", "args": [number]})
    return took


if __name__ == "__main__":
    main()
