"""kill -9 at fixed moments, each process once, with a real vLLM. `make soak-kill` does it at length and at random."""

from __future__ import annotations

from pathlib import Path

import pytest

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
from tunewright.config import EMBEDDED_BASE
from tunewright_client import Tunewright

from .conftest import FAST, processes_of, start_service, wait_ready, wait_until

TUNING = {**FAST, "n_epochs": 12}
AT_STEP = {2: "trainer", 5: "lifeline", 8: "engine worker", 12: "scheduler", 16: "api", 20: "queues"}
"""Of 36: 48 rows, 16 at a time, 12 times."""


@pytest.mark.soak  # six minutes beside an asker on two cores: too long for the suite
@pytest.mark.timeout(900)
def test_nothing_is_lost_whatever_is_killed(tmp_path: Path) -> None:
    service = start_service(tmp_path / "data")
    recoveries = Recoveries()
    try:
        wait_ready(service)
        with service.client(timeout=60) as client:
            files = upload_rows(client, tmp_path, 48)
            first = client.jobs.wait(submit(client, files, "undisturbed", **TUNING).id, timeout=240)
            undisturbed = Training.of(client, service, first)
            adapter = Question(first.fine_tuned_model or "", "What color is the sky?")
            base = Question(EMBEDDED_BASE, "What color is the sky?")
            with Askers(service.url, [adapter, base], threads=1) as askers:
                second = submit(client, files, "disturbed", **TUNING)
                for step, role in AT_STEP.items():
                    wait_until(lambda step=step: _step(client, second.id) >= step, 240, f"step {step}")
                    before = kill(service, role)
                    assert before, f"there is no {role} to kill"
                    seconds = wait_recovered(service, role, before, adapter, _step(client, second.id))
                    recoveries.seconds[role].append(seconds)
                done = client.jobs.wait(second.id, timeout=240)
            assert askers.bad == []
            assert askers.counts["right"] > 10
            _same(Training.of(client, service, done), undisturbed)

            third = submit(client, files, "everything", **TUNING)
            wait_until(lambda: _step(client, third.id) >= 4, 240, "step 4")
        with Askers(service.url, [adapter], threads=1) as askers:
            before = kill(service, "EngineCore")
            recoveries.seconds["EngineCore"].append(wait_recovered(service, "EngineCore", before, adapter))
            kill(service, "everything")
            service = again(service)
            recoveries.seconds["everything"].append(wait_recovered(service, "everything", [], adapter))
        assert askers.bad == []
        with service.client(timeout=60) as client:
            done = client.jobs.wait(third.id, timeout=240)
            _same(Training.of(client, service, done), undisturbed)
            named = {job.metadata["name"] for job in client.jobs.list(limit=100) if job.metadata}
            assert named == {"undisturbed", "disturbed", "everything"}
        assert recoveries.seconds["api"][0] < 6, "3 on a machine that does nothing else"
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


def _same(told: Training, undisturbed: Training) -> None:
    assert told.doubled == []
    assert told.losses == undisturbed.losses
    assert told.sha256 == undisturbed.sha256, "bit for bit"
