"""A process that hangs is ended and replaced: a supervisor's child, and each process of the whole service."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from tests.engine.conftest import Service, wait_until
from tests.kills import find, tree
from tests.without_vllm import BASE, start_without_vllm, wait_engine

from fuzzing import TRIED_THREE_TIMES
from tunewright.supervisor.process import ProcessId

PYTHONPATH = os.pathsep.join(path for path in sys.path if path)
ENVIRONMENT = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "PYTHONPATH": PYTHONPATH}
LIMIT = 5
IN_FLIGHT = "tunewright_engine_requests_in_flight{"

# a supervisor and its children

BEATS = """
import os, pathlib, sys, time
folder, beats = pathlib.Path(sys.argv[1]), int(sys.argv[2])
with (folder / "starts").open("a") as file:
    print(os.getpid(), file=file)
while beats:
    (folder / "heartbeat").touch()
    beats -= 1
    time.sleep(0.05)
time.sleep(600)
"""


def supervise(folder: Path, beats: int, limit: float = 1.0) -> subprocess.Popen[str]:
    """A supervisor of one child, which beats this many times (-1: without end) and then hangs."""
    program = textwrap.dedent(f"""
        import logging, os, pathlib, sys
        from tunewright.supervisor.heartbeat import HeartbeatWatch
        from tunewright.supervisor.supervisor import Service, Supervisor
        logging.basicConfig(level="INFO")
        folder = pathlib.Path({str(folder)!r})
        service = Service("one", [sys.executable, "-c", {BEATS!r}, str(folder), "{beats}"], grace=1)
        service.heartbeat = HeartbeatWatch(folder / "heartbeat", {limit})
        sys.exit(Supervisor([service], os.environ, folder / "run").run())
    """)
    return subprocess.Popen(
        [sys.executable, "-c", program], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )


def starts(folder: Path) -> list[int]:
    """Process ids of the child, one for each start."""
    path = folder / "starts"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def ended(supervisor: subprocess.Popen[str]) -> str:
    """Returns what the supervisor logged."""
    supervisor.send_signal(signal.SIGCONT)
    supervisor.terminate()
    return supervisor.communicate(timeout=20)[1]


def test_a_child_that_stops_beating_is_killed_and_started_again(tmp_path: Path) -> None:
    supervisor = supervise(tmp_path, beats=3)
    try:
        wait_until(lambda: len(starts(tmp_path)) >= 2, 20, "a second start")
        with pytest.raises(ProcessLookupError):
            ProcessId.of(starts(tmp_path)[0])
    finally:
        log = ended(supervisor)
    assert "one hangs, without a sign of life for 1 s: killed; starting it again in 0.2 s" in log


def test_a_stopped_child_is_killed_and_started_again(tmp_path: Path) -> None:
    supervisor = supervise(tmp_path, beats=-1)
    try:
        (pid,) = wait_until(lambda: starts(tmp_path), 20, "a start")
        wait_until((tmp_path / "heartbeat").exists, 20)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: len(starts(tmp_path)) == 2, 20, "a second start")
    finally:
        ended(supervisor)


def test_a_child_that_beats_is_left_alone(tmp_path: Path) -> None:
    supervisor = supervise(tmp_path, beats=-1, limit=0.5)
    try:
        wait_until((tmp_path / "heartbeat").exists, 20)
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            assert len(starts(tmp_path)) == 1
            time.sleep(0.1)
    finally:
        log = ended(supervisor)
    assert "hangs" not in log


def test_a_supervisor_that_was_stopped_itself_kills_nothing(tmp_path: Path) -> None:
    """As where a machine sleeps: all processes stop, and the supervisor's first check comes before any beat."""
    supervisor = supervise(tmp_path, beats=-1, limit=4.0)
    try:
        (pid,) = wait_until(lambda: starts(tmp_path), 20, "a start")
        wait_until((tmp_path / "heartbeat").exists, 20)
        for one in (supervisor.pid, pid):
            os.kill(one, signal.SIGSTOP)
        time.sleep(6)  # the test is that this much time passes
        os.kill(supervisor.pid, signal.SIGCONT)
        time.sleep(0.5)
        os.kill(pid, signal.SIGCONT)
        time.sleep(2)
        assert starts(tmp_path) == [pid]
    finally:
        log = ended(supervisor)
    assert "hangs" not in log


# the whole service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = start_without_vllm(
        tmp_path_factory.mktemp("hangs") / "data", "--hang-timeout", str(LIMIT),
        environment={"STAND_IN_CORE": "1"},
    )  # fmt: skip
    try:
        wait_engine(running)
        yield running
    finally:
        running.stop()


def answer(service: Service, chunks: int = 0) -> httpx.Response:
    """`chunks`: number of parts of a streamed answer, one every 50 ms."""
    body = {
        "model": BASE,
        "messages": [{"role": "user", "content": "Hi"}],
        "vllm_xargs": {"chunks": chunks},
        "stream": chunks > 0,
    }
    return httpx.post(f"{service.url}/v1/chat/completions", json=body, timeout=60)


def stop_one(service: Service, role: str) -> int:
    """Send SIGSTOP once the process has sent a heartbeat."""
    name = {"engine worker": "worker", "queues": "api"}.get(role, role)
    heartbeat = service.data_dir / "run" / f"{name}.heartbeat"
    beaten = heartbeat.stat().st_mtime_ns
    wait_until(lambda: heartbeat.stat().st_mtime_ns != beaten, 30, f"{role} beats")
    (pid,) = wait_until(lambda: find(service, role), 20, role)
    os.kill(pid, signal.SIGSTOP)
    return int(pid)


def wait_replaced(service: Service, role: str, stopped: int) -> None:
    wait_until(lambda: (found := find(service, role)) and stopped not in found, 60, f"another {role}")


def component(service: Service, name: str) -> dict[str, object]:
    found = httpx.get(f"{service.url}/ready", timeout=60, verify=False).json()["components"][name]
    return dict(found)


def log_has(service: Service, text: str) -> Callable[[], bool]:
    return lambda: text in service.log.read_text()


def test_a_stopped_api_is_replaced_and_the_request_that_waited_is_answered(service: Service) -> None:
    stopped = stop_one(service, "api")
    assert answer(service).status_code == 200, "it waits in the listening socket for the next api"
    wait_replaced(service, "api", stopped)
    assert f"api hangs, without a sign of life for {LIMIT} s: killed" in service.log.read_text()


def test_a_stopped_scheduler_is_replaced_and_its_engines_go_on(service: Service) -> None:
    before = find(service, "vLLM server")
    assert len(before) == 1
    stopped = stop_one(service, "scheduler")
    assert answer(service).status_code == 200
    wait_replaced(service, "scheduler", stopped)
    assert f"scheduler hangs, without a sign of life for {LIMIT} s: killed" in service.log.read_text()
    wait_until(lambda: component(service, "scheduler")["state"] == "ready", 30, "the next one beats")
    assert find(service, "vLLM server") == before
    assert answer(service).status_code == 200


def test_a_stopped_engine_worker_is_replaced_while_generations_go_on(service: Service) -> None:
    apis = find(service, "api")
    stopped = stop_one(service, "engine worker")
    assert answer(service).status_code == 200
    wait_replaced(service, "engine worker", stopped)
    wait_until(log_has(service, f"the engine worker hangs: no sign of life for {LIMIT} s"), 20)
    assert find(service, "api") == apis
    wait_until(lambda: component(service, "worker")["state"] == "ready", 30, "the next one beats")


def test_with_its_queues_stopped_the_api_starts_again(service: Service) -> None:
    (api,) = find(service, "api")
    stopped = stop_one(service, "queues")
    wait_replaced(service, "api", api)
    wait_replaced(service, "queues", stopped)
    wait_until(lambda: answer(service).status_code == 200, 60, "an answer")


@TRIED_THREE_TIMES
@pytest.mark.parametrize("part", ["tunewright.engine.server", "VLLM::EngineCore"])
def test_that_an_engine_is_gone_is_told_within_a_second(service: Service, part: str) -> None:
    """In `/ready`, to a request that is being answered, and to the next one."""
    wait_engine(service)
    wait_until(lambda: parts(service, part), 20, part)
    with ThreadPoolExecutor(1) as asking:
        long = asking.submit(answer, service, chunks=600)
        wait_until(lambda: in_flight(service), 20, "a request that takes 30 s")
        [killed] = parts(service, part)
        os.kill(killed, signal.SIGKILL)
        began = time.monotonic()
        wait_until(lambda: httpx.get(f"{service.url}/ready").status_code == 503, 20, "/ready says so")
        assert time.monotonic() - began < 1
        lost = long.result().text
        assert time.monotonic() - began < 2, "it was not answered to its end"
    refused = answer(service)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
    assert "The engine was lost while answering" in lost
    for text in (lost, refused.text):
        assert "stack trace" not in text
    wait_until(lambda: answer(service).status_code == 200, 30, "the next one answers")


def parts(service: Service, name: str) -> list[int]:
    """Process ids of the engine's processes with this name."""
    return [pid for pid, (_, line) in tree(service.process.pid).items() if name in line]


def in_flight(service: Service) -> bool:
    text = httpx.get(f"{service.url}/metrics").text
    return any(float(line.rpartition(" ")[2]) > 0 for line in text.splitlines() if line.startswith(IN_FLIGHT))
