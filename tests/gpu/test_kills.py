"""kill -9 on an NVIDIA GPU: a killed process frees its memory, and the others keep running."""

from __future__ import annotations

import time
from pathlib import Path

import pynvml
import pytest

from tests.engine.conftest import DEMO, FAST, processes_of, start_service, wait_ready, wait_until
from tests.kills import Question, Training, again, ask, kill, submit, wait_recovered
from tunewright_client import Tunewright

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]
OPTIONS = ("--device", "cuda", "--vllm-arg=--enforce-eager", "--gpu-memory-utilization", "0.2")
LONG = {**FAST, "n_epochs": 40}
LITTLE = 700
"""MiB that may differ: contexts of others, the driver's."""


def used() -> int:
    """MiB in use on the first GPU."""
    pynvml.nvmlInit()
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used) // 2**20
    finally:
        pynvml.nvmlShutdown()


def test_memory_comes_back_and_everything_goes_on(tmp_path: Path) -> None:
    before = used()
    service = start_service(tmp_path / "data", *OPTIONS)
    try:
        wait_ready(service)
        with service.client(timeout=60) as client:
            serving = used()
            files = (
                client.files.upload(DEMO / "train.jsonl").id,
                client.files.upload(DEMO / "validation.jsonl").id,
            )
            first = client.jobs.wait(submit(client, files, "first", **FAST).id, timeout=300)
            adapter = Question(first.fine_tuned_model or "", "What color is the sky?")
            assert ask(service.url, adapter, streamed=False) == "right"

            job = submit(client, files, "second", **LONG)
            wait_until(lambda: _step(client, job.id) >= 3, 240, "a job trains")
            assert used() > serving + 300
            client.jobs.pause(job.id)
            wait_until(lambda: client.jobs.retrieve(job.id).status == "paused", 60, "it is paused")
            assert used() < serving + LITTLE, "the device is free while a job is paused"
            client.jobs.resume(job.id)
            step = _step(client, job.id)
            wait_until(lambda: _step(client, job.id) > step, 240, "it goes on")
            took = wait_recovered(
                service, "trainer", kill(service, "trainer"), adapter, _step(client, job.id)
            )
            print(f"\ntrainer {took:.1f} s; MiB: before {before}, serving {serving}")

        took = wait_recovered(service, "EngineCore", kill(service, "EngineCore"), adapter)
        print(f"EngineCore {took:.1f} s")
        for role in ("supervisor", "everything"):
            kill(service, role)
            began = time.monotonic()
            wait_until(lambda service=service: not processes_of(service), 15, "no process is left")
            wait_until(lambda: used() <= before + LITTLE, 15, "the GPU's memory is free")
            print(f"{role}: memory and processes gone after {time.monotonic() - began:.1f} s")
            service = again(service)
            took = wait_recovered(service, role, [], adapter, timeout=300)
            print(f"{role} {took:.1f} s")
        with service.client(timeout=60) as client:
            done = client.jobs.wait(job.id, timeout=400)
            assert done.status == "succeeded"
            assert Training.of(client, service, done).doubled == []
    finally:
        if service.process.poll() is None:
            service.stop()
    assert processes_of(service) == []
    assert used() <= before + LITTLE


def _step(client: Tunewright, job_id: str) -> int:
    progress = client.jobs.retrieve(job_id).progress
    return progress.step or 0 if progress else 0
