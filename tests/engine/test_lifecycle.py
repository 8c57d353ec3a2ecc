"""Starting, stopping and starting again, with a service of its own; and the demo."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from lora import random_lora
from tests.kills import Askers, Question, kill, living, tree, wait_recovered
from tunewright.config import EMBEDDED_BASE, embedded_base_path
from tunewright_client import Tunewright

from .conftest import DEMO, FAST, Service, free_port, processes_of, start_service, wait_ready, wait_until

_PR_SET_CHILD_SUBREAPER = 36
CHAT = [{"role": "user", "content": "What color is the sky?"}]


def test_a_stop_loses_nothing_and_a_start_brings_everything_back(tmp_path: Path) -> None:
    """Health at once, 503 until ready; SIGTERM in training saves; the job continues, adapters are loaded again; also
    when vLLM's EngineCore is killed."""
    folder = tmp_path / "a folder" / ("deep" * 25) / "data"  # longer than a socket's path may be
    service = start_service(folder, "--parity", "off")
    data = service.data_dir
    try:
        _health_answers_at_once(service)
        with service.client() as client:
            _check_unready(client, service)
            source = random_lora(embedded_base_path(), tmp_path / "adapter", strength=1.0, seed=1)
            earlier = client.adapters.register(source, suffix="earlier").model
            job = client.jobs.create(
                model=EMBEDDED_BASE, training_file=DEMO / "train.jsonl", tuning=FAST, suffix="again"
            )
            wait_until(lambda: (p := client.jobs.retrieve(job.id).progress) and p.step >= 3, 120, "steps")
        took = service.stop()
        assert took < 15, f"stopping took {took:.1f} s"
        assert processes_of(service) == []

        service = start_service(data, "--parity", "off", port=int(service.url.rsplit(":", 1)[1]))
        with service.client() as client:
            job = client.jobs.wait(job.id, timeout=240)
            steps = [e.data["step"] for e in client.jobs.stream_events(job.id) if e.type == "metrics"]
            assert steps == list(range(1, 31)), "no step is reported twice, none is missing"
            assert any("Resuming from" in e.message for e in client.jobs.stream_events(job.id))
            wait_ready(service)
            wait_until(lambda: client.adapters.retrieve(earlier).state == "loaded", 30, "it is loaded")
            answers = {
                model: client.chat.create(model=model, messages=CHAT, temperature=0, max_tokens=16).text
                for model in (EMBEDDED_BASE, earlier, job.fine_tuned_model or "")
            }
            assert answers[job.fine_tuned_model or ""].startswith("Arr!")
            assert len(set(answers.values())) == 3, answers
            _check_engine_core_killed(service, job.fine_tuned_model or "")
            assert _shared_memory(service), "of the next engine"
            supervisor = service.process
            supervisor.kill()
            supervisor.wait()
        wait_until(lambda: processes_of(service) == [], 10, "nothing outlives the supervisor")
    finally:
        if service.process.poll() is None:
            service.stop()


def _check_engine_core_killed(service: Service, adapter: str) -> None:
    """Whoever asks meanwhile gets a right answer, or is told when to ask again. No shared memory is left."""
    before = _shared_memory(service)
    assert before, "vLLM's workers have some"
    asked = Question(adapter, "What color is the sky?")
    with Askers(service.url, [asked, Question(EMBEDDED_BASE, asked.text)], threads=1, pause=0.2) as askers:
        wait_until(lambda: askers.counts["right"] > 5, 60, "answers")
        killed = kill(service, "EngineCore")
        # vLLM alone takes 10 s to say so; test_hangs.py has the bound of 1 s
        wait_until(lambda: _status(service, "/ready") == 503, 5, "/ready says that the engine is gone")
        wait_recovered(service, "EngineCore", killed, asked)
    assert askers.bad == []
    assert not any(path.exists() for path in before)


def _shared_memory(service: Service) -> list[Path]:
    """That of the engine's processes, and the folder of their sockets."""
    [record] = service.data_dir.glob("engines/*/leftovers")
    folder = Path(record.read_text())
    memory = list(Path("/dev/shm").glob(f"{folder.name}-*"))
    return [*memory, folder] if memory and list(folder.iterdir()) else []


def _health_answers_at_once(service: Service) -> None:
    began = time.monotonic()
    wait_until(lambda: _status(service, "/health") == 200, 20, "/health")
    assert time.monotonic() - began < 15


def _status(service: Service, path: str) -> int:
    try:
        return httpx.get(service.url + path, timeout=20, verify=False).status_code
    except httpx.TransportError:
        return 0


def _check_unready(client: Tunewright, service: Service) -> None:
    def components() -> Any:
        answer = httpx.get(service.url + "/ready", verify=False)
        assert answer.status_code == 503
        return answer.json()["components"]

    # the scheduler starts beside the api, and names its engines
    expected = {"api", "scheduler", "worker", f"engine:{EMBEDDED_BASE}"}
    wait_until(lambda: components().keys() == expected, 20, f"{expected} are named")
    assert components()[f"engine:{EMBEDDED_BASE}"]["model"] == EMBEDDED_BASE
    refused = httpx.post(
        service.url + "/v1/chat/completions", json={"model": EMBEDDED_BASE, "messages": CHAT}
    )
    assert refused.status_code == 503
    assert refused.headers["retry-after"]


def test_a_bad_base_says_why_and_leaves_the_rest_working(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    service = start_service(
        tmp_path / "data", "--base", f"broken={broken}", "--base", "missing=/nowhere/at/all"
    )
    try:
        wait_until(lambda: _status(service, "/ready") == 503, 20)

        def reasons() -> dict[str, str | None]:
            components = httpx.get(service.url + "/ready", verify=False).json()["components"]
            return {name: c["reason"] for name, c in components.items() if name.startswith("engine:")}

        wait_until(lambda: all(reasons().values()), 20, "both reasons")
        assert "safetensors" in (reasons()["engine:broken"] or "")
        assert "/nowhere/at/all" in (reasons()["engine:missing"] or "")
        assert httpx.get(service.url + "/v1/models").status_code == 200
    finally:
        service.stop()


def test_the_demo_shows_a_difference_and_leaves_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with adopted() as left:
        done = subprocess.run(
            [sys.executable, "-m", "tunewright", "demo", "--port", str(free_port())],
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert left() == []
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for question in json.loads((DEMO / "questions.json").read_text()):
        assert question in done.stdout
    for promised in ("matey!", f"ft:{EMBEDDED_BASE}:pirate:", "curl", "OpenAI(", "LOSS"):
        assert promised in done.stdout, promised


@pytest.mark.soak
def test_an_interrupted_demo_leaves_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with adopted() as left:
        process = subprocess.Popen(
            [sys.executable, "-m", "tunewright", "demo", "--port", str(free_port())],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started = re.compile(r"tunewright\.engine\.server vllm")
        wait_until(
            lambda: any(started.search(line) for _, line in tree(process.pid).values()), 180, "vLLM starts"
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(25) == 130
        wait_until(lambda: left() == [], 5, "no process is left")


@contextmanager
def adopted() -> Iterator[Callable[[], list[str]]]:
    """Makes processes whose parents end children of this one. Returns a function that tells which of them are alive."""

    def adopt(orphans: bool) -> None:
        assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(orphans), 0, 0, 0) == 0

    def children() -> dict[int, str]:
        return {pid: line for pid, (parent, line) in living().items() if parent == os.getpid()}

    adopt(True)
    before = children()
    try:
        yield lambda: [line for pid, line in children().items() if pid not in before]
    finally:
        adopt(False)
