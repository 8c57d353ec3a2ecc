"""kill -9 at fixed moments, each process once, with a stand-in for vLLM. `make soak-kill` does it at length and at
random, with a real vLLM and with SIGSTOP; `test_hangs.py` stops each process; `tests/engine/test_lifecycle.py` kills
vLLM's EngineCore."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.engine.conftest import FAST, processes_of, wait_until
from tests.kills import (
    Askers,
    Question,
    Recoveries,
    Training,
    again,
    kill,
    submit,
    upload_rows,
    wait_recovered,
)
from tests.without_vllm import BASE, start_without_vllm, wait_engine

from tunewright_client import Tunewright

ASKED = Question(BASE, "What color is the sky?")
TUNING = {**FAST, "n_epochs": 3}
AT_STEP = {2: "trainer", 4: "lifeline", 7: "engine worker", 10: "scheduler", 14: "api", 18: "queues"}
"""The process to kill at each of these steps, of 30 in all: 160 rows, 16 at a time, 3 epochs. Fewer, longer epochs
have fewer validations and checkpoints to wait for. The fork server is killed in `test_fork_server.py`."""


@pytest.mark.timeout(1800)
def test_nothing_is_lost_whatever_is_killed(tmp_path: Path) -> None:
    service = start_without_vllm(tmp_path / "data")
    recoveries = Recoveries()
    began = time.monotonic()

    def recover(role: str, before: list[int], step: int = 0) -> None:
        recoveries.seconds[role].append(wait_recovered(service, role, before, adapter, step))
        print(
            f"{time.monotonic() - began:6.1f} s {role:<21} {recoveries.seconds[role][-1]:6.1f} s", flush=True
        )

    try:
        wait_engine(service)
        with service.client(timeout=60) as client:
            files = upload_rows(client, tmp_path, 160)
            first = client.jobs.wait(
                submit(client, files, "undisturbed", base=BASE, **TUNING).id, timeout=600
            )
            undisturbed = Training.of(client, service, first)
            adapter = Question(first.fine_tuned_model or "", "What color is the sky?")
            with Askers(service.url, [adapter, ASKED], threads=1, pause=0.2) as askers:
                second = submit(client, files, "disturbed", base=BASE, **TUNING)
                for step, role in AT_STEP.items():
                    wait_until(lambda step=step: _step(client, second.id) >= step, 240, f"step {step}")
                    last = _step(client, second.id)
                    before = wait_until(lambda role=role: kill(service, role), 60, f"a {role} to kill")
                    recover(role, before, last)
            assert askers.bad == []
            assert askers.counts["right"] > 10
            assert client.jobs.retrieve(second.id).status == "running"
        with Askers(service.url, [adapter, ASKED], threads=1, pause=0.2) as askers:
            kill(service, "everything")
            service = again(service)
            recover("everything", [])
            with service.client(timeout=60) as client:
                done = client.jobs.wait(second.id, timeout=600)
            recover("vLLM server", kill(service, "vLLM server"))
        assert askers.bad == []
        with service.client(timeout=60) as client:
            resumed = Training.of(client, service, done)
            named = [job.metadata["name"] for job in client.jobs.list(limit=100) if job.metadata]
        assert resumed.doubled == []
        assert resumed.losses == undisturbed.losses
        assert resumed.sha256 == undisturbed.sha256, "bit for bit"
        assert sorted(named) == ["disturbed", "undisturbed"]
        assert recoveries.seconds["api"][0] < 10, "3 on a machine that does nothing else"
        print(recoveries.table())
    finally:
        if service.process.poll() is None:
            service.stop()
    assert processes_of(service) == []


def _step(client: Tunewright, job_id: str) -> int:
    try:
        progress = client.jobs.retrieve(job_id).progress
    except Exception:
        return 0
    return progress.step or 0 if progress else 0
