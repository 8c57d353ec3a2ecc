"""A model streamed layer by layer (`evaluate.streamed`), against accelerate's hooks and against the whole model.

    python -m benchmarks.random_base qwen2-0.5b /data/base
    python -m benchmarks.streamed_models /data/base

Each way runs in a process of its own, in float32 on the CPU: seconds to be ready, seconds of the processor for one pass
over 2 rows of 128 tokens (the best of three), the largest memory above that at the start (all of it, and what is not
pages of files), what it wrote to disk, and how far its logits are from the whole model's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload, disk_offload, init_empty_weights, load_checkpoint_and_dispatch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tunewright.evaluate.streamed import streamed_model
from tunewright.evaluate.weights import SafetensorsWeights

MIB = 2**20


def whole(base: Path, _scratch: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="sdpa")


def ours(base: Path, _scratch: Path) -> nn.Module:
    return streamed_model(base, weights=SafetensorsWeights(base), device="cpu", dtype=torch.float32)


def device_map(base: Path) -> dict[str, str]:
    """What has parameters on disk, layer by layer. Where all parts have one device, accelerate hands that to
    safetensors, which knows no `disk`."""
    layers = AutoConfig.from_pretrained(base).num_hidden_layers
    parts = ("model.embed_tokens", "model.norm", "lm_head")
    on_disk = dict.fromkeys((*parts, *(f"model.layers.{n}" for n in range(layers))), "disk")
    return {**on_disk, "model.rotary_emb": "cpu"}


def from_pretrained(base: Path, scratch: Path) -> nn.Module:
    """transformers' own use of `dispatch_model`, with an index that refers to the model's files where it can."""
    return AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.float32,
        attn_implementation="sdpa",
        device_map=device_map(base),
        offload_folder=scratch,
    )


def checkpoint_and_dispatch(base: Path, scratch: Path) -> nn.Module:
    config = AutoConfig.from_pretrained(base)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    model.tie_weights()
    return load_checkpoint_and_dispatch(
        model, str(base), device_map=device_map(base), offload_folder=str(scratch), dtype=torch.float32
    )


def offloaded_to_cpu(base: Path, scratch: Path) -> nn.Module:
    return cpu_offload(whole(base, scratch), execution_device=torch.device("cpu"))


def offloaded_to_disk(base: Path, scratch: Path) -> nn.Module:
    return disk_offload(whole(base, scratch), str(scratch), execution_device=torch.device("cpu"))


WAYS: dict[str, Callable[[Path, Path], nn.Module]] = {
    "whole": whole,
    "streamed_model": ours,
    "from_pretrained to disk": from_pretrained,
    "load_checkpoint_and_dispatch": checkpoint_and_dispatch,
    "cpu_offload": offloaded_to_cpu,
    "disk_offload": offloaded_to_disk,
}


class Peaks:
    """The largest resident memory since the start: all of it, and anonymous memory, looked at 500 times a second."""

    def __init__(self) -> None:
        self._start = self._now()
        self.all, self.anonymous = 0, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.002):
            found = self._now()
            self.all = max(self.all, found["VmRSS"] - self._start["VmRSS"])
            self.anonymous = max(self.anonymous, found["RssAnon"] - self._start["RssAnon"])

    @staticmethod
    def _now() -> dict[str, int]:
        lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        return {
            words[0].rstrip(":"): int(words[1]) * 1024
            for words in lines
            if words[0] in ("VmRSS:", "RssAnon:")
        }


def measure(way: str, base: Path, logits: Path) -> dict[str, Any]:
    """One way, in this process; the first writes the logits that others are compared with."""
    tokens = torch.randint(0, 1000, (2, 128), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory(dir=base.parent) as scratch, torch.inference_mode():
        peaks = Peaks()
        began = time.perf_counter()
        model = WAYS[way](base, Path(scratch)).eval()
        ready = time.perf_counter() - began
        passes = []
        for _ in range(3):
            began = time.process_time()
            found = model(input_ids=tokens, use_cache=False).logits
            passes.append(time.process_time() - began)
        peaks.stop()
        written = sum(file.stat().st_size for file in Path(scratch).rglob("*") if file.is_file())
        if way == "whole":
            torch.save(found, logits)
        return {
            "ready": ready,
            "pass": min(passes),
            "all": peaks.all / MIB,
            "anonymous": peaks.anonymous / MIB,
            "written": written / MIB,
            "difference": float((found - torch.load(logits)).abs().max()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("--way", choices=WAYS, help="one of them, in this process")
    parser.add_argument("--logits", type=Path)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.base, options.logits)))
        return
    print("| | ready, s | pass, s of CPU | peak, MiB | of it anonymous | written, MiB | difference |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.streamed_models", str(options.base)]
            command += ["--way", way, "--logits", f"{folder}/logits.pt"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"| {way} | {done.stderr.strip().splitlines()[-1]} | | | | | |")
                continue
            r = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {way} | {r['ready']:.1f} | {r['pass']:.1f} | {r['all']:.0f} | {r['anonymous']:.0f} "
                f"| {r['written']:.0f} | {r['difference']:g} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
