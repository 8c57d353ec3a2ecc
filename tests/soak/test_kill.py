"""Over 60 kill -9 and SIGSTOP over training, loading and generation, with a real vLLM: `make soak-kill`, which takes
more than half an hour.

First a matrix, each process in each phase; then random processes at random moments. A job always trains, requests are
always sent, among them some that score prompts in batches of eight, and every adapter is checked against peft. In the
end every job exists once and has reported each step once, with the losses and the adapter of an undisturbed run.
"""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.engine.conftest import FAST, Service, processes_of, start_service, wait_ready
from tests.evaluations import Evaluation, score
from tests.kills import (
    STOPPED,
    WHOLE,
    Askers,
    Question,
    Recoveries,
    Training,
    again,
    find,
    kill,
    submit,
    upload_rows,
    wait_recovered,
)
from tunewright.config import EMBEDDED_BASE

pytestmark = pytest.mark.soak

KILLS = 70
HANG_TIMEOUT = "15"
TUNING = {**FAST, "n_epochs": 6}
ROLES = (
    "api", "engine worker", "queues", "scheduler", "trainer", "fork server", "standby", "lifeline", "vLLM server",
    "EngineCore", "supervisor", "everything", *STOPPED,
)  # fmt: skip
RARER = {"vLLM server": 0.4, "EngineCore": 0.4, "supervisor": 0.4, "everything": 0.6}
RARER |= dict.fromkeys(STOPPED, 0.4)
"""Weights of the random kills: these cost vLLM's start each time, or the time until a hang is noticed."""


class Soak:
    """The service, the jobs and requests that run all the time, and the count of what was killed."""

    def __init__(self, service: Service, files: tuple[str, str]) -> None:
        self.service = service
        self.files = files
        self.recoveries = Recoveries()
        self.jobs: list[str] = []
        self.adapter = Question("", "What color is the sky?")
        self.phases: list[str] = []

    @property
    def kills(self) -> int:
        return sum(map(len, self.recoveries.seconds.values()))

    def step(self) -> tuple[str, int]:
        """(state, last step) of the newest job."""
        try:
            page = httpx.get(
                f"{self.service.url}/v1/fine_tuning/jobs", params={"limit": 1}, timeout=30
            ).json()
            job = page["data"][0]
            return job["status"], (job.get("progress") or {}).get("step") or 0
        except httpx.HTTPError:
            return "unknown", 0

    def keep_training(self) -> None:
        """Submit the next job when the last one has ended."""
        if self.step()[0] in ("succeeded", "failed", "cancelled"):
            with self.service.client(timeout=60) as client:
                name = f"job-{len(self.jobs)}"
                submit(client, self.files, name, **TUNING)
                self.jobs.append(name)

    def kill(self, role: str, phase: str) -> None:
        deadline = time.monotonic() + 60
        while not find(self.service, role):  # just killed, or between two jobs
            assert time.monotonic() < deadline, f"there is no {role} to kill"
            self.keep_training()
            time.sleep(0.2)
        _, step = self.step()
        before = kill(self.service, role)
        if not before:
            return
        if role in WHOLE:
            self.service = again(self.service)
        took = wait_recovered(self.service, role, before, self.adapter, step)
        self.recoveries.seconds[role].append(took)
        self.phases.append(phase)
        print(f"{self.kills:3d} {phase:<11} {role:<21} {took:6.1f} s", flush=True)


def training(soak: Soak) -> None:
    """Waits until the job has reported a step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        soak.keep_training()
        if soak.step()[0] == "running" and soak.step()[1] > 0:
            time.sleep(random.uniform(0, 2))
            return
        time.sleep(0.2)
    pytest.fail("no job trains")


def loading(soak: Soak) -> None:
    """Kills while an adapter is loaded through the API: it is unloaded before, and loading takes milliseconds."""
    path = f"{soak.service.url}/v1/adapters/{soak.spare}"  # type: ignore[attr-defined]

    def load() -> None:
        for operation in ("unload", "load"):
            try:
                httpx.post(f"{path}/{operation}", timeout=60)
            except httpx.HTTPError:
                pass

    threading.Thread(target=load, daemon=True).start()
    time.sleep(random.uniform(0.02, 0.3))


def generating(soak: Soak) -> None:
    """Kills while eight long streams run, besides the other requests."""

    def stream() -> None:
        body = {
            "model": EMBEDDED_BASE, "prompt": "Once", "max_tokens": 900, "ignore_eos": True, "stream": True,
        }  # fmt: skip
        try:
            with httpx.stream("POST", f"{soak.service.url}/v1/completions", json=body, timeout=60) as answer:
                for _ in answer.iter_lines():
                    pass
        except httpx.HTTPError:
            pass

    for _ in range(8):
        threading.Thread(target=stream, daemon=True).start()
    time.sleep(random.uniform(0.2, 1.0))


PHASES: dict[str, Callable[[Soak], None]] = {
    "training": training,
    "loading": loading,
    "generating": generating,
}


@pytest.mark.timeout(5400)
def test_nothing_is_lost_doubled_or_wrong(tmp_path: Path) -> None:
    random.seed(int(os.environ.get("PYTEST_SEED", "20261122")))
    service = start_service(
        tmp_path / "data", "--hang-timeout", HANG_TIMEOUT, environment={"TUNEWRIGHT_API_STANDBY": "true"}
    )
    try:
        wait_ready(service)
        with service.client(timeout=120) as client:
            files = upload_rows(client, tmp_path, 96)
            first = client.jobs.wait(submit(client, files, "undisturbed", **TUNING).id, timeout=600)
            undisturbed = Training.of(client, service, first)
            spare = client.jobs.checkpoints(first.id).data[0].fine_tuned_model_checkpoint
        soak = Soak(service, files)
        soak.spare = spare  # type: ignore[attr-defined]
        soak.adapter.model = first.fine_tuned_model or ""
        questions = [
            soak.adapter,
            Question(EMBEDDED_BASE, "What color is the sky?"),
            Question(EMBEDDED_BASE, "How many legs does a dog have?"),
            Question(soak.adapter.model, "What sound does a cow make?"),
        ]
        scored = [EMBEDDED_BASE, soak.adapter.model]
        with httpx.Client(timeout=120) as client:
            scores = {model: score(client, service.url, model)[1] for model in scored}
        began = time.monotonic()
        with (
            Askers(service.url, questions, threads=2, pause=0.1) as askers,
            Evaluation(service.url, scored, scores) as evaluation,
        ):
            for phase, reach in PHASES.items():
                for role in ROLES:
                    soak.keep_training()
                    reach(soak)
                    soak.kill(role, phase)
                    service = soak.service
            weights = [RARER.get(role, 1.0) for role in ROLES]
            while soak.kills < KILLS:
                soak.keep_training()
                time.sleep(random.uniform(0, 6))
                soak.kill(random.choices(ROLES, weights)[0], "random")
                service = soak.service
        with service.client(timeout=120) as client:
            jobs = {job.metadata["name"]: job for job in client.jobs.list(limit=100) if job.metadata}
            assert set(jobs) == {"undisturbed", *soak.jobs}, "each job is there, and once"
            assert len(client.jobs.list(limit=100).data) == len(jobs)
            for name, job in jobs.items():
                training = Training.of(client, service, client.jobs.wait(job.id, timeout=600))
                assert training.doubled == [], name
                assert training.losses == undisturbed.losses, name
                assert training.sha256 == undisturbed.sha256, name
        print(f"\n{soak.kills} kills in {time.monotonic() - began:.0f} s; {len(jobs)} jobs, all equal to the")
        print(f"undisturbed one, bit for bit; answers: {dict(askers.counts)}, bad: {len(askers.bad)}")
        print(soak.recoveries.table())
        print(f"scored meanwhile: {dict(evaluation.counts)}, bad: {len(evaluation.bad)}")
        assert askers.bad == []
        assert evaluation.bad == []
        assert evaluation.counts["right"] > 10
        assert soak.kills >= KILLS
        assert statistics.median(soak.recoveries.seconds["api"]) < 3
    finally:
        if service.process.poll() is None:
            service.stop()
    assert processes_of(service) == []
