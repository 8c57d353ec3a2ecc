"""Processes as forks of one that has imported what they need: the real server, with small modules."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.engine.conftest import wait_until

from tunewright.scheduler import fork_server
from tunewright.scheduler.fork_server import ForkServer
from tunewright.scheduler.processes import ChildProcess
from tunewright.supervisor.process import ProcessId

MODULE = """
import os, sys, time, signal
import slow_import
print("forked" if slow_import.pid != os.getpid() else "new", sys.argv[1:], os.environ.get("COLOR"), os.getpgrp())
sys.stdout.flush()
action, value = sys.argv[1:]
if action == "exit": sys.exit(int(value))
if action == "sleep": time.sleep(float(value))
if action == "show": print(os.environ[value])
if action == "need":
    from tunewright.imports import need
    need("bitsandbytes")
    print("has it", "bitsandbytes" not in sys.modules)
"""


@pytest.fixture
def lifeline() -> Iterator[int]:
    reading, writing = os.pipe()
    yield reading
    os.close(writing)
    os.close(reading)


@pytest.fixture
def make(
    tmp_path: Path, lifeline: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., ForkServer]]:
    (tmp_path / "slow_import.py").write_text(
        "import os\npid = os.getpid()\nos.environ['SET'] = 'by import'\n"
    )
    (tmp_path / "small.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    made = []

    def made_here(idle: float = 60.0, module: str = "slow_import") -> ForkServer:
        made.append(ForkServer(tmp_path, lifeline, idle, [module]))
        return made[-1]

    yield made_here
    for server in made:
        server.stop()


@pytest.fixture
def run(tmp_path: Path, lifeline: int) -> Iterator[Callable[..., ChildProcess]]:
    started: list[ChildProcess] = []

    def start(server: ForkServer, *arguments: str, **environment: str) -> ChildProcess:
        number = len(started)
        process = ChildProcess.start(
            [sys.executable, "-m", "small", *arguments],
            record=tmp_path / f"{number}.json",
            log_file=tmp_path / f"{number}.log",
            environment={**os.environ, **environment},
            lifeline=lifeline,
            name="a test",
            launch=server.launch,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.end()


def ready(server: ForkServer) -> ForkServer:
    wait_until(server.prepare, 30, "the server has imported")
    return server


def ended(process: ChildProcess) -> int | None:
    assert process.group.wait(20)
    return process.exit().code


def test_a_fork_has_the_imports_and_is_else_as_the_command_would_be(
    make: Callable[..., ForkServer], run: Callable[..., ChildProcess], tmp_path: Path
) -> None:
    server = make()
    assert not server.prepare(), "it imports"
    ready(server)
    process = run(server, "exit", "75", COLOR="green")
    assert ended(process) == 75
    group = process.group.record.group
    assert (tmp_path / "0.log").read_text() == f"forked ['exit', '75'] green {group}\n"
    run(server, "show", "SET", SET="before")
    wait_until(lambda: "by import" in (tmp_path / "1.log").read_text(), 10, "what an import sets is set")
    other = run(server, "sleep", "60")
    os.kill(other.pid or 0, signal.SIGKILL)
    assert ended(other) == -signal.SIGKILL
    assert ended(run(server, "exit", "0")) == 0


def test_who_needs_what_was_not_imported_starts_a_new_interpreter(
    make: Callable[..., ForkServer], run: Callable[..., ChildProcess], tmp_path: Path
) -> None:
    process = run(ready(make()), "need", "it")
    assert ended(process) == 0
    lines = (tmp_path / "0.log").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["forked", "new", "has"]
    assert lines[-1] == "has it True"
    assert lines[0].split()[1:] == lines[1].split()[1:], "the same arguments, environment and process group"


def test_ending_a_fork_ends_its_group_and_no_other(
    make: Callable[..., ForkServer], run: Callable[..., ChildProcess]
) -> None:
    server = ready(make())
    one, other = run(server, "sleep", "60"), run(server, "sleep", "60")
    one.end()
    assert not one.is_alive()
    assert other.is_alive()
    other.terminate()
    assert ended(other) == -signal.SIGTERM


def test_without_the_server_forks_go_on_and_the_next_process_starts_anyway(
    make: Callable[..., ForkServer], run: Callable[..., ChildProcess], tmp_path: Path
) -> None:
    server = ready(make())
    process = run(server, "sleep", "60")
    os.kill(_pid(server), signal.SIGKILL)
    wait_until(lambda: server.receive() or not server.is_connected, 10, "its end is noticed")  # type: ignore[func-returns-value]
    assert process.is_alive()
    assert ended(run(server, "exit", "3")) == 3
    assert "new" in (tmp_path / "1.log").read_text()
    process.terminate()
    assert ended(process) is None, "only its parent would have learnt it"
    server.tick()
    ready(server)
    assert ended(run(server, "exit", "4")) == 4
    assert "forked" in (tmp_path / "2.log").read_text()


def test_a_server_that_hangs_delays_a_start_and_no_more(
    make: Callable[..., ForkServer],
    run: Callable[..., ChildProcess],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fork_server, "_ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(fork_server, "_REPORT_SECONDS", 0.5)
    server = ready(make())
    before = run(server, "sleep", "0.5")
    os.kill(_pid(server), signal.SIGSTOP)
    assert ended(before) is None, "nobody tells its exit code"
    began = time.monotonic()
    process = run(server, "exit", "5")
    assert ended(process) == 5
    assert time.monotonic() - began < 10
    assert "new" in (tmp_path / "1.log").read_text()
    assert server.prepare(), "processes start without it for a while"


def test_what_cannot_be_imported_keeps_no_process_from_starting(
    make: Callable[..., ForkServer], run: Callable[..., ChildProcess], tmp_path: Path
) -> None:
    server = make(module="no_such_module")
    wait_until(server.prepare, 30, "it gives up")
    assert ended(run(server, "exit", "6")) == 6
    assert "No module named 'no_such_module'" in (tmp_path / "fork-server.log").read_text()


def test_it_ends_when_it_is_not_used_and_starts_for_the_next_one(
    make: Callable[..., ForkServer], run: Callable[..., ChildProcess]
) -> None:
    server = ready(make(idle=0.3))
    process = run(server, "sleep", "1")
    while process.is_alive():
        server.tick()
        assert server.is_connected, "a fork runs whose exit code it tells"
        time.sleep(0.05)
    wait_until(lambda: server.tick() or not server.is_connected, 5, "it ends")  # type: ignore[func-returns-value]
    assert ended(run(ready(server), "exit", "7")) == 7


def test_a_new_scheduler_ends_what_the_old_one_left(
    make: Callable[..., ForkServer], run: Callable[..., ChildProcess]
) -> None:
    old = ready(make())
    process = run(old, "sleep", "60")
    pid = ProcessId.of(_pid(old))
    os.kill(pid.pid, signal.SIGSTOP)
    make()
    wait_until(lambda: not pid.is_alive(), 5, "it has ended")
    assert process.is_alive(), "it is adopted by its own record"


def test_switched_off_it_never_starts(
    make: Callable[..., ForkServer], run: Callable[..., ChildProcess], tmp_path: Path
) -> None:
    server = make(idle=0)
    assert server.prepare()
    assert ended(run(server, "exit", "8")) == 8
    assert "new" in (tmp_path / "0.log").read_text()
    assert not (tmp_path / "fork-server.log").exists()


def _pid(server: ForkServer) -> int:
    assert server._process is not None
    assert server._process.pid is not None
    return server._process.pid
