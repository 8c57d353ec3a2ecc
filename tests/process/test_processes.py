"""Real processes: groups start, stop and are adopted; nothing outlives the lifeline; services come back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from disks import fill_up, small_disk
from tunewright.supervisor.process import GroupRecord, ProcessGroup, ProcessId
from tunewright.supervisor.supervisor import Supervisor

PYTHONPATH = os.pathsep.join(path for path in sys.path if path)
ENVIRONMENT = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "PYTHONPATH": PYTHONPATH}

STUBBORN = "trap '' TERM; sleep 60 & echo $! > {pids}.child; echo $$ > {pids}; wait; sleep 60"


def until(condition: Callable[[], object], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


def written(path: Path) -> int:
    """The process id that appears in a file."""
    assert until(lambda: path.exists() and path.read_text().strip().isdigit()), f"nothing in {path}"
    return int(path.read_text())


def is_dead(process: ProcessId) -> bool:
    return not process.is_alive()


@pytest.fixture
def lifeline() -> Iterator[tuple[int, int]]:
    """(read end, write end)"""
    reading, writing = os.pipe()
    yield reading, writing
    for end in (reading, writing):
        try:
            os.close(end)
        except OSError:
            pass  # the test closed it


@pytest.fixture
def start(tmp_path: Path, lifeline: tuple[int, int]) -> Iterator[Callable[..., ProcessGroup]]:
    groups: list[ProcessGroup] = []

    def run(script: str, name: str = "one", **options: object) -> ProcessGroup:
        group = ProcessGroup.start(
            ["/bin/sh", "-c", script],
            record_path=tmp_path / f"{name}.json",
            environment=ENVIRONMENT,
            lifeline=lifeline[0],
            **options,  # type: ignore[arg-type]
        )
        groups.append(group)
        return group

    yield run
    for group in groups:
        group.end()


Start = Callable[..., ProcessGroup]


# groups


def test_a_command_runs_and_its_exit_code_is_known(start: Start, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with output.open("wb") as file:
        group = start("echo hello; echo oops >&2; exit 7", output=file)
    assert group.wait(5)
    assert (group.exit_code, group.is_alive()) == (7, False)
    assert output.read_text() == "hello\noops\n"


def test_the_record_is_there_before_the_command_and_gone_after_the_end(start: Start, tmp_path: Path) -> None:
    group = start(f"cat {tmp_path}/one.json > {tmp_path}/seen; sleep 60")
    assert until(lambda: (tmp_path / "seen").exists() and (tmp_path / "seen").read_text())
    seen = GroupRecord.read(tmp_path / "seen")
    assert seen is not None
    assert seen.watcher == group.record.watcher
    assert GroupRecord.read(tmp_path / "one.json") == group.record
    group.end()
    assert not (tmp_path / "one.json").exists()


def test_stop_asks_first(start: Start, tmp_path: Path) -> None:
    group = start(
        f"trap 'echo bye > {tmp_path}/bye; exit 3' TERM; echo $$ > {tmp_path}/up; while :; do sleep 0.05; done"
    )
    written(tmp_path / "up")
    group.stop(5)
    assert (tmp_path / "bye").exists()
    assert group.exit_code == 3


def test_stop_kills_what_does_not_listen(start: Start, tmp_path: Path) -> None:
    group = start(STUBBORN.format(pids=tmp_path / "pids"))
    command = ProcessId.of(written(tmp_path / "pids"))
    grandchild = ProcessId.of(written(tmp_path / "pids.child"))
    began = time.monotonic()
    group.stop(0.3)
    assert time.monotonic() - began < 3
    assert until(lambda: is_dead(command) and is_dead(grandchild) and is_dead(group.record.watcher))
    assert group.exit_code == -signal.SIGKILL


def test_grandchildren_die_with_the_group_also_after_the_command(start: Start, tmp_path: Path) -> None:
    group = start(f"sleep 60 & echo $! > {tmp_path}/pid; exit 0")
    grandchild = ProcessId.of(written(tmp_path / "pid"))
    assert group.wait(5)
    assert grandchild.is_alive()
    group.end()
    assert until(lambda: is_dead(grandchild))


def test_ending_twice_is_no_error(start: Start) -> None:
    group = start("sleep 60")
    group.end()
    group.end()
    assert not group.is_alive()


def test_a_command_that_cannot_start_leaves_nothing(tmp_path: Path, lifeline: tuple[int, int]) -> None:
    with pytest.raises(FileNotFoundError):
        ProcessGroup.start(
            ["/no/such/program"], record_path=tmp_path / "r.json", environment={}, lifeline=lifeline[0]
        )
    assert list(tmp_path.iterdir()) == []


def test_a_group_whose_watcher_was_killed_can_still_be_ended(start: Start, tmp_path: Path) -> None:
    group = start("trap '' TERM; sleep 60")
    os.kill(group.record.watcher.pid, signal.SIGKILL)
    assert until(lambda: is_dead(group.record.watcher))
    adopted = ProcessGroup.adopt(tmp_path / "one.json")
    assert adopted is not None
    assert adopted.pid == group.pid
    group.stop(0.1)
    assert not group.is_alive()


def test_grandchildren_die_too_where_watcher_and_command_are_dead(start: Start, tmp_path: Path) -> None:
    group = start(f"sleep 60 & echo $! > {tmp_path}/pid; exit 0")
    grandchild = ProcessId.of(written(tmp_path / "pid"))
    os.kill(group.record.watcher.pid, signal.SIGKILL)
    assert until(lambda: is_dead(group.record.watcher))
    group.end()
    assert until(lambda: is_dead(grandchild))


def test_a_group_is_adopted_and_ended_by_its_record(start: Start, tmp_path: Path) -> None:
    group = start(STUBBORN.format(pids=tmp_path / "pids"))
    grandchild = ProcessId.of(written(tmp_path / "pids.child"))
    adopted = ProcessGroup.adopt(tmp_path / "one.json")
    assert adopted is not None
    assert adopted.pid == group.pid
    assert adopted.is_alive()
    assert adopted.exit_code is None
    adopted.stop(0.1)
    assert until(lambda: is_dead(grandchild))
    assert ProcessGroup.adopt(tmp_path / "one.json") is None


def test_a_dead_group_is_not_adopted(start: Start, tmp_path: Path) -> None:
    group = start("exit 0")
    record = (tmp_path / "one.json").read_text()
    group.end()
    (tmp_path / "one.json").write_text(record)
    assert ProcessGroup.adopt(tmp_path / "one.json") is None


def test_another_process_with_the_same_id_is_not_adopted(tmp_path: Path) -> None:
    me = ProcessId.of(os.getpid())
    GroupRecord(me.pid, ProcessId(me.pid, me.started - 1), None).write(tmp_path / "r.json")
    assert ProcessGroup.adopt(tmp_path / "r.json") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"watcher": null}', '{"watcher": {"pid": 1}, "command": null}']
)
def test_a_torn_record_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    assert GroupRecord.read(tmp_path / "r.json") is None
    assert ProcessGroup.adopt(tmp_path / "r.json") is None


def test_what_an_earlier_boot_recorded_is_neither_adopted_nor_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a boot, the id and the start time may be another process's, which is not ours to end."""
    me = ProcessId.of(os.getpid())
    path = tmp_path / "r.json"
    GroupRecord(me.pid, me, me).write(path)
    assert GroupRecord.read(path) is not None
    assert ProcessGroup.adopt(path) is not None
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "boot": "00000000-0000-0000-0000-000000000000"}))
    assert GroupRecord.read(path) is None
    assert ProcessGroup.adopt(path) is None
    del record["boot"]
    path.write_text(json.dumps(record))
    assert ProcessGroup.adopt(path) is None, "as versions before wrote it, whose processes have ended"


def test_on_a_full_disk_a_record_is_overwritten_in_its_place(tmp_path: Path) -> None:
    me = ProcessId.of(os.getpid())
    with small_disk(tmp_path / "disk", 1) as disk:
        GroupRecord(me.pid, me, me).write(disk / "r.json")
        fill_up(disk)
        GroupRecord(me.pid, me, None).write(disk / "r.json")
        assert GroupRecord.read(disk / "r.json") == GroupRecord(me.pid, me, None)
        with pytest.raises(OSError, match="No space left"):
            GroupRecord(me.pid, me, None).write(disk / "new.json")
        assert sorted(path.name for path in disk.iterdir()) == ["ballast", "r.json"]


def test_a_supervisor_that_cannot_start_a_child_tries_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    program = textwrap.dedent(f"""
        import logging, os, pathlib, sys
        from tunewright.supervisor.supervisor import Service, Supervisor
        logging.basicConfig(level="INFO")
        service = Service("one", ["/bin/sh", "-c", "echo $$ > {tmp_path}/pid; sleep 60"], grace=1)
        sys.exit(Supervisor([service], os.environ, pathlib.Path({str(run)!r})).run())
    """)
    supervisor = subprocess.Popen([sys.executable, "-c", program], env=ENVIRONMENT, stderr=subprocess.PIPE)
    try:
        first = written(tmp_path / "pid")
        (tmp_path / "pid").unlink()
        assert until((run / "one.json").exists)
        (run / "one.tmp").mkdir()  # where a record is written first, so that there can be none
        os.kill(first, signal.SIGKILL)
        time.sleep(2)
        assert supervisor.poll() is None
        assert not (tmp_path / "pid").exists(), "nothing runs without a record"
        (run / "one.tmp").rmdir()
        assert written(tmp_path / "pid") != first
    finally:
        supervisor.terminate()
        log = supervisor.communicate(timeout=20)[1].decode()
    assert "one cannot be started: " in log


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen(["true"])
    process = ProcessId.of(child.pid)
    assert until(lambda: not process.is_alive())
    child.wait()
    with pytest.raises(ProcessLookupError):
        ProcessId.of(child.pid)


# the lifeline


def test_a_group_dies_when_the_lifeline_closes(
    start: Start, lifeline: tuple[int, int], tmp_path: Path
) -> None:
    start(STUBBORN.format(pids=tmp_path / "pids"))
    processes = [ProcessId.of(written(tmp_path / name)) for name in ("pids", "pids.child")]
    os.close(lifeline[1])
    assert until(lambda: all(map(is_dead, processes)), 3)


def test_killing_the_holder_of_the_lifeline_kills_everything(tmp_path: Path) -> None:
    """kill -9 of the parent: no handler of its own runs, and the children ignore SIGTERM."""
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
                import os, pathlib, time
                from tunewright.supervisor.process import ProcessGroup
                reading, writing = os.pipe()
                ProcessGroup.start(["/bin/sh", "-c", {STUBBORN.format(pids=tmp_path / "pids")!r}],
                    record_path=pathlib.Path({str(tmp_path / "r.json")!r}), environment=os.environ, lifeline=reading)
                time.sleep(60)
            """),
        ],
        env=ENVIRONMENT,
    )
    processes = [ProcessId.of(written(tmp_path / name)) for name in ("pids", "pids.child")]
    record = GroupRecord.read(tmp_path / "r.json")
    assert record is not None
    holder.kill()
    holder.wait()
    assert until(lambda: all(map(is_dead, [*processes, record.watcher])), 3)


def test_a_group_whose_watcher_was_killed_gets_a_new_one(
    start: Start, lifeline: tuple[int, int], tmp_path: Path
) -> None:
    group = start(STUBBORN.format(pids=tmp_path / "pids"))
    processes = [ProcessId.of(written(tmp_path / name)) for name in ("pids", "pids.child")]
    first = group.record.watcher
    group.keep_watched(lifeline[0])
    assert group.record.watcher == first, "one that lives is enough"
    os.kill(first.pid, signal.SIGKILL)
    assert until(lambda: is_dead(first))
    group.keep_watched(lifeline[0])
    assert GroupRecord.read(tmp_path / "one.json") == group.record
    assert group.record.watcher.is_alive()
    os.close(lifeline[1])
    assert until(lambda: all(map(is_dead, processes)), 3)


# the supervisor


def supervise(tmp_path: Path, *services: tuple[str, str, float]) -> subprocess.Popen[str]:
    """A supervisor of (name, shell script, grace) in a process of its own."""
    program = textwrap.dedent(f"""
        import logging, os, pathlib, sys
        from tunewright.supervisor.supervisor import Service, Supervisor
        logging.basicConfig(level="INFO")
        services = [Service(name, ["/bin/sh", "-c", script], grace) for name, script, grace in {services!r}]
        sys.exit(Supervisor(services, os.environ, pathlib.Path({str(tmp_path / "run")!r})).run())
    """)
    return subprocess.Popen(
        [sys.executable, "-c", program], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )


def ended(supervisor: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str, float]:
    """(exit code, what it logged, seconds it took to stop)"""
    began = time.monotonic()
    supervisor.send_signal(number)
    log = supervisor.communicate(timeout=20)[1]
    return supervisor.returncode, log, time.monotonic() - began


FOREVER = "echo $$ > {0}; exec sleep 60"


def test_a_killed_service_comes_back_and_the_others_stay(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    supervisor = supervise(
        tmp_path, ("first", FOREVER.format(first), 1), ("second", FOREVER.format(second), 1)
    )
    try:
        killed, other = ProcessId.of(written(first)), ProcessId.of(written(second))
        os.kill(killed.pid, signal.SIGKILL)
        assert until(lambda: first.read_text().strip() not in ("", str(killed.pid)), 5)
        assert other.is_alive()
        again = ProcessId.of(written(first))
    finally:
        code, log, _ = ended(supervisor)
    assert code == 0
    assert "first ended with code -9; starting it again in 0.2 s" in log
    assert until(lambda: is_dead(again) and is_dead(other))


def test_a_service_that_keeps_dying_is_tried_less_and_less_often(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    supervisor = supervise(tmp_path, ("bad", f"echo x >> {starts}; exit 1", 1))
    try:
        assert until(lambda: starts.exists() and len(starts.read_text().split()) >= 3, 8)
    finally:
        code, log, _ = ended(supervisor)
    assert code == 0
    waits = [line.rpartition(" in ")[2] for line in log.splitlines() if "starting it again" in line]
    assert waits[:2] == ["0.2 s", "0.4 s"]


STANDBYS = """
import logging, os, pathlib, sys
from tunewright.supervisor import supervisor
folder = pathlib.Path({folder!r})
supervisor._STANDBY_AFTER, supervisor._BACKOFF_LAST = 0, 3600
logging.basicConfig(level="INFO")
program = '''
import os, pathlib, sys, time
from tunewright.supervisor.standby import wait_until_needed
folder = pathlib.Path(sys.argv[1])
if len(sys.argv) > 2:
    (folder / "waits").write_text(str(os.getpid()))
    if not wait_until_needed(int(sys.argv[3])):
        sys.exit()
(folder / "serves").write_text(str(os.getpid()))
time.sleep(60)
'''
service = supervisor.Service("one", [sys.executable, "-c", program, str(folder)], grace=1, has_standby=True)
sys.exit(supervisor.Supervisor([service], os.environ, folder / "run").run())
"""


def test_a_standby_takes_over_where_a_service_was_killed_and_another_one_waits_then(tmp_path: Path) -> None:
    serves, waits, run = tmp_path / "serves", tmp_path / "waits", tmp_path / "run"
    program = STANDBYS.format(folder=str(tmp_path))
    supervisor = subprocess.Popen(
        [sys.executable, "-c", program], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    try:
        for _ in range(2):  # the second time, what was the standby before is killed
            killed, standby = written(serves), written(waits)
            waits.unlink()
            (run / "one.tmp").mkdir(exist_ok=True)  # as on a full disk: no record can be written
            os.kill(killed, signal.SIGKILL)
            assert until(lambda standby=standby: serves.read_text() == str(standby))
            record = GroupRecord.read(run / "one.json")
            assert record is not None
            assert record.command is not None
            assert record.command.pid == standby
            (run / "one.tmp").rmdir()
        idle = ProcessId.of(written(waits))
        waits.unlink()
        os.kill(idle.pid, signal.SIGSTOP)
        assert until(idle.is_stopped)
        os.kill(standby, signal.SIGKILL)
        assert until(lambda: serves.read_text() not in ("", str(standby)))
        assert written(serves) != idle.pid, "one that is stopped does not take over"
        assert until(lambda: is_dead(idle))
        last = ProcessId.of(written(serves))
        waiting = ProcessId.of(written(waits))
        os.kill(waiting.pid, signal.SIGKILL)
        assert until(lambda: is_dead(waiting) and not (run / "one-standby.json").exists())
        assert last.is_alive(), "the end of its standby does not touch the service"
    finally:
        code, log, _ = ended(supervisor)
    assert code == 0
    assert log.count("one ended with code -9; its standby takes over") == 2
    assert log.count("one ended with code -9; starting it again in 0.2 s") == 1
    assert "the standby of one has ended" in log
    assert list(run.iterdir()) == []


def test_a_standby_ends_with_its_supervisor(tmp_path: Path) -> None:
    program = STANDBYS.format(folder=str(tmp_path))
    supervisor = subprocess.Popen([sys.executable, "-c", program], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    processes = [ProcessId.of(written(tmp_path / name)) for name in ("serves", "waits")]
    record = GroupRecord.read(tmp_path / "run" / "one-standby.json")
    assert record is not None
    supervisor.send_signal(signal.SIGSTOP)  # so that it starts no other watcher
    os.kill(record.watcher.pid, signal.SIGKILL)
    supervisor.kill()
    supervisor.wait()
    assert until(lambda: all(map(is_dead, processes))), "by the end of its pipe, without a watcher too"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_stops_within_the_grace_whatever_its_services_do(tmp_path: Path, number: int) -> None:
    pids = tmp_path / "pids"
    supervisor = supervise(tmp_path, ("deaf", STUBBORN.format(pids=pids), 0.4))
    processes = [ProcessId.of(written(path)) for path in (pids, tmp_path / "pids.child")]
    code, log, seconds = ended(supervisor, number)
    assert (code, seconds < 3) == (0, True)
    assert "deaf did not stop within 0 s; killing it" in log
    assert until(lambda: all(map(is_dead, processes)))
    assert list((tmp_path / "run").iterdir()) == []


def test_killing_the_supervisor_leaves_nothing(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    supervisor = supervise(tmp_path, ("deaf", STUBBORN.format(pids=pids), 1))
    processes = [ProcessId.of(written(path)) for path in (pids, tmp_path / "pids.child")]
    supervisor.kill()
    supervisor.communicate()
    assert until(lambda: all(map(is_dead, processes)), 3)


def test_nothing_is_left_either_where_a_watcher_was_killed_before(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    supervisor = supervise(tmp_path, ("deaf", STUBBORN.format(pids=pids), 1))
    processes = [ProcessId.of(written(path)) for path in (pids, tmp_path / "pids.child")]
    record = GroupRecord.read(tmp_path / "run" / "deaf.json")
    assert record is not None
    os.kill(record.watcher.pid, signal.SIGKILL)
    assert until(
        lambda: (r := GroupRecord.read(tmp_path / "run" / "deaf.json")) and r.watcher != record.watcher
    )
    supervisor.kill()
    supervisor.communicate()
    assert until(lambda: all(map(is_dead, processes)), 3)


RELOADS = """
import logging, os, pathlib, signal, sys, time
from tunewright.supervisor.supervisor import Reload, Service, Supervisor
folder = pathlib.Path({folder!r})

def carry_out():
    if (folder / "fails").exists():
        raise ValueError("it cannot be carried out")
    time.sleep(0.3)
    (folder / "alive").write_text(str(len(list((folder / "run").glob("*.json")))))
    (folder / "wanted").unlink()

logging.basicConfig(level="INFO")
services = [Service(name, ["/bin/sh", "-c", "echo $$ >> " + str(folder / name) + "; exec sleep 60"], 1)
            for name in ("first", "second")]
reload = Reload((folder / "wanted").exists, carry_out)
sys.exit(Supervisor(services, os.environ, folder / "run", reload).run())
"""


def reloading(tmp_path: Path) -> subprocess.Popen[str]:
    """A supervisor of two services that reloads where the file `wanted` is."""
    program = RELOADS.format(folder=str(tmp_path))
    return subprocess.Popen(
        [sys.executable, "-c", program], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )


def test_a_reload_is_carried_out_while_no_service_runs(tmp_path: Path) -> None:
    supervisor = reloading(tmp_path)
    try:
        old = [ProcessId.of(written(tmp_path / name)) for name in ("first", "second")]
        (tmp_path / "wanted").touch()
        assert until(lambda: (tmp_path / "alive").exists())
        assert (tmp_path / "alive").read_text() == "0"
        assert all(map(is_dead, old))
        again = [tmp_path / "first", tmp_path / "second"]
        assert until(lambda: all(len(path.read_text().split()) == 2 for path in again))
    finally:
        code, log, _ = ended(supervisor)
    assert code == 0
    assert log.count("stopping all services for a while") == 1
    assert "starting it again" not in log, "they did not fail"


def test_told_to_stop_while_it_reloads_it_starts_nothing_again(tmp_path: Path) -> None:
    supervisor = reloading(tmp_path)
    written(tmp_path / "second")
    (tmp_path / "wanted").touch()
    assert until(lambda: not list((tmp_path / "run").glob("*.json")))
    code, _, _ = ended(supervisor)
    assert code == 0
    assert not (tmp_path / "wanted").exists()
    assert len((tmp_path / "first").read_text().split()) == 1


def test_a_reload_that_fails_ends_the_supervisor_and_leaves_nothing(tmp_path: Path) -> None:
    """The services must not run on a half-finished restore."""
    supervisor = reloading(tmp_path)
    old = [ProcessId.of(written(tmp_path / name)) for name in ("first", "second")]
    (tmp_path / "fails").touch()
    (tmp_path / "wanted").touch()
    log = supervisor.communicate(timeout=20)[1]
    assert supervisor.returncode == 1
    assert "it cannot be carried out" in log
    assert until(lambda: all(map(is_dead, old)))
    assert len((tmp_path / "first").read_text().split()) == 1


def test_a_supervisor_without_services_can_be_made() -> None:
    """It opens its lifeline at once, before any thread or child exists."""
    assert Supervisor([], {}, Path())._lifeline >= 0


# tunewright serve


def serve(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tunewright", "serve", *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_a_taken_port_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = serve("--data-dir", str(tmp_path / "data"), "--port", str(port))
    assert done.returncode == 1
    assert (
        done.stderr.strip() == f"tunewright serve: cannot listen on 127.0.0.1:{port}: Address already in use"
    )


def test_a_data_folder_in_use_is_told_in_one_line(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "data" / "run").mkdir(parents=True)
    with (tmp_path / "data" / "run" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = serve("--data-dir", str(tmp_path / "data"), "--port", "1")
    assert done.returncode == 1
    assert done.stderr.strip() == f"tunewright serve: another server uses the data folder {tmp_path / 'data'}"


def test_a_data_folder_that_is_a_file_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    done = serve("--data-dir", str(tmp_path / "data"))
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        == f"tunewright serve: the data folder {tmp_path / 'data'} cannot be used: File exists"
    )
