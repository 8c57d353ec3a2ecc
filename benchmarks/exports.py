"""The cost and the benefit of exports: sizes, memory, and output tokens/s of bfloat16 against AWQ, alternated.

    python -m benchmarks.exports                     # the embedded base, on this machine
    python -m benchmarks.exports --base big=/models/big --data-dir /data/bench --stage make -- --device cuda
    python -m benchmarks.exports --base big=/models/big --data-dir /data/bench --stage serve -- --device cuda

An adapter with random weights (rank 16) is merged into the base, the merged model is quantized, and both are deployed
beside each other. Their answers mean nothing where the base is random too, but their cost does. Arguments after `--`
are passed to `tunewright serve`. The stages can run one after the other, on one data folder.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.mixed_adapters import load, random_adapter
from tests.engine.conftest import DEMO, start_service, wait_until

from tunewright.config import EMBEDDED_BASE, embedded_base_path
from tunewright_client import Deployment, Export, Tunewright, TunewrightError

GIB = 2**30


def wait_engine(client: Tunewright, base: str, *, ready: bool) -> None:
    """Wait until the engine of the base is ready, or at least has inspected the base."""

    def look() -> bool:
        try:
            state = client.models.retrieve(base).state
        except TunewrightError:
            return False  # the API is starting
        return state == "ready" or (not ready and state == "starting")

    wait_until(look, 600, f"the engine of {base}")


def make(client: Tunewright, base: str, folder: Path, options: argparse.Namespace) -> None:
    """Make the two exports, and print their measurements."""
    adapter = client.adapters.register(
        random_adapter(folder, options.data_dir / "bench-adapter", 1, rank=16),
        base=base,
        suffix="bench",
        load=False,
    )
    files = {
        "calibration_file": client.files.upload(DEMO / "train.jsonl").id,
        "validation_file": client.files.upload(DEMO / "validation.jsonl").id,
    }
    asked: dict[str, Any] = {"model": adapter.model, "validation_rows": 16, "force": True, **files}
    merged = client.exports.create(
        format="merged", **{k: v for k, v in asked.items() if k != "calibration_file"}
    ).wait(progress=True)
    awq = client.exports.create(format="awq", calibration_rows=options.rows, **asked).wait(progress=True)
    for export in (merged, awq):
        print_report(export)
    (options.data_dir / "bench.json").write_text(
        json.dumps({"merged": merged.exported_model, "awq": awq.exported_model})
    )


def print_report(export: Export) -> None:
    report = export.report
    assert report is not None
    assert report.quality is not None
    print(
        f"\n{export.exported_model}: {(export.finished_at or 0) - (export.started_at or 0)} s, gate {report.gate}"
    )
    print(f"bytes {report.bytes} of {report.source_bytes}")
    for name, details in report.details.items():
        print(f"  {name}: {details}")
    for row in report.quality.models:
        print(f"  {row.name:<22} loss {row.loss} KL {row.kl} top-1 {row.top1_agreement}", flush=True)


def serve(client: Tunewright, url: str, options: argparse.Namespace) -> None:
    """Deploy both exports, and measure tokens/s alternately."""
    models = json.loads((options.data_dir / "bench.json").read_text())
    engine = json.loads(options.engine)
    began = time.perf_counter()
    for model in models.values():
        client.deployments.create(model, engine)
    shown: dict[str, Deployment] = {}
    for name, model in models.items():
        shown[name] = client.deployments.wait(model, timeout=580)
        print(f"{name} is ready after {time.perf_counter() - began:.0f} s", flush=True)
    for name, deployment in shown.items():
        size = client.models.retrieve(models[name]).bytes or 0
        print(
            f"{name}: {size / GIB:.3f} GiB on disk; resident {(deployment.memory_bytes or 0) / GIB:.3f} GiB, on the "
            f"device {(deployment.device_memory_bytes or 0) / GIB:.3f} GiB; {memory_lines(deployment.logs())}"
        )
    print(
        f"\n{'streams':>8}{'bf16 tok/s':>12}{'AWQ tok/s':>12}   AWQ / bf16 (min to max), {options.rounds} rounds"
    )
    for streams in options.streams:
        for model in models.values():
            asyncio.run(load(url, [model], streams, options.tokens))  # warm-up, not counted
        rows = []
        for _ in range(options.rounds):
            plain = asyncio.run(load(url, [models["merged"]], streams, options.tokens))
            quantized = asyncio.run(load(url, [models["awq"]], streams, options.tokens))
            rows.append((plain, quantized, quantized / plain))
        plain, quantized, ratio = (statistics.median(column) for column in zip(*rows, strict=True))
        spread = f"{ratio:.3f} ({min(r[2] for r in rows):.3f} to {max(r[2] for r in rows):.3f})"
        print(f"{streams:>8}{plain:>12.0f}{quantized:>12.0f}   {spread}", flush=True)


def memory_lines(log: str) -> str:
    """The line of vLLM's log with the memory of the weights."""
    found = [line.split("] ")[-1].strip() for line in log.splitlines() if "Model loading took" in line]
    return found[-1] if found else "vLLM logs no size of the weights"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default=f"{EMBEDDED_BASE}={embedded_base_path()}", help="NAME=FOLDER")
    parser.add_argument("--data-dir", type=Path, help="a folder to keep; by default a temporary one")
    parser.add_argument("--stage", choices=("make", "serve", "all"), default="all")
    parser.add_argument("--rows", type=int, default=16, help="rows of calibration text")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", default="{}", help="`engine` of the deployments, as JSON")
    parser.add_argument("service", nargs="*", help="arguments for `tunewright serve`, after --")
    options = parser.parse_args()
    temporary = None
    if options.data_dir is None:
        temporary = Path(tempfile.mkdtemp(prefix="tunewright-bench-"))
        options.data_dir = temporary / "data"
    name, _, folder = options.base.partition("=")
    service = start_service(
        options.data_dir, "--base", options.base, "--parity", "off", "--max-awq-kl", "100", *options.service
    )
    try:
        with Tunewright(base_url=service.url, timeout=600) as client:
            wait_engine(client, name, ready=False)
            if options.stage in ("make", "all"):
                make(client, name, Path(folder), options)
            if options.stage in ("serve", "all"):
                serve(client, service.url, options)
    except BaseException:
        print(service.log.read_text()[-3000:])
        raise
    finally:
        service.stop()
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    main()
