"""Log files: bounded in size, and in the length of their lines, while a process writes to them and when read."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from disks import fill_up, small_disk
from tunewright import log_files
from tunewright.log_files import LONGEST_LINE, begin_anew, keep_small, parts, parts_of_run, read
from tunewright.logs import shortened
from tunewright.scheduler.engine_log import last_error
from tunewright.scheduler.processes import ChildProcess, last_line


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(log_files, "LARGEST", 100_000)
    return tmp_path / "process.log"


def text(paths: list[Path], tail: int | None = None) -> str:
    return "".join(read(paths, tail))


def sizes(path: Path) -> list[int]:
    return [part.stat().st_size for part in parts(path) if part.exists()]


# rotation


def test_a_log_that_is_small_enough_is_left_alone(log: Path) -> None:
    assert not keep_small(log)
    log.write_bytes(b"x\n" * 50_000)
    assert not keep_small(log)
    assert sizes(log) == [100_000]


def test_a_log_that_is_too_large_becomes_an_older_part_and_the_oldest_goes(log: Path) -> None:
    for number in range(6):
        with log.open("ab") as file:
            file.write(f"{number}\n".encode() * 60_000)
        assert keep_small(log)
    assert [part.read_text()[-2:-1] for part in parts(log)] == ["3", "4", "5", "-"]
    assert all(size < 100_100 for size in sizes(log))
    assert sizes(log)[-1] < 100


def test_of_a_log_that_grew_far_too_fast_the_end_is_kept_with_its_lines_cut(log: Path) -> None:
    log.write_bytes(b"old\n" * 100_000 + b"y" * 90_000 + b"\nlast\n")
    assert keep_small(log)
    kept = parts(log)[-2].read_bytes()
    assert kept.endswith(b"bytes are left out)\nlast\n")
    assert len(kept) < 10_000 + LONGEST_LINE + 100


def test_a_process_goes_on_writing_at_the_new_end(log: Path) -> None:
    with log.open("ab", buffering=0) as file:
        file.write(b"a" * 150_000)
        assert keep_small(log)
        file.write(b"new\n")
    assert log.read_bytes().splitlines()[1:] == [b"new"]


def test_a_new_run_keeps_the_log_of_the_one_before(log: Path) -> None:
    begin_anew(log)
    log.write_text("first\n")
    begin_anew(log)
    assert not log.exists()
    assert parts(log)[-2].read_text() == "first\n"


def test_the_parts_of_a_run_begin_where_the_run_began(log: Path) -> None:
    assert parts_of_run(log) == [log]
    log.write_text("an older run\n")
    begin_anew(log)
    log.write_bytes(b"a\n" * 60_000)
    assert parts_of_run(log) == [log]
    assert keep_small(log)
    assert parts_of_run(log) == parts(log)[-2:]
    with log.open("ab") as file:
        file.write(b"b\n" * 60_000)
    assert keep_small(log)
    assert parts_of_run(log) == parts(log)[-3:]
    assert [line[0] for line in read(parts_of_run(log))][:1] == ["a"]
    begin_anew(log)
    log.write_text("the next run\n")
    assert parts_of_run(log) == [log]


def test_the_reason_of_an_engines_end_is_found_also_where_its_log_was_just_rotated(log: Path) -> None:
    log.write_bytes(b"x\n" * 60_000 + b"ValueError: no room for the KV cache\n")
    assert keep_small(log)
    assert last_line(log) == "ValueError: no room for the KV cache"
    with log.open("ab") as file:
        file.write(b"INFO the rest\n")
    assert last_error(log) == "ValueError: no room for the KV cache"
    assert last_line(log) == "INFO the rest"
    begin_anew(log)
    log.write_text("INFO another run\n")
    assert last_error(log) == "its log names no error"


def test_on_a_full_disk_a_log_is_emptied_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_files, "LARGEST", 100_000)
    with small_disk(tmp_path / "disk", 1) as disk:
        log = disk / "engine.log"
        log.write_bytes(b"x\n" * 100_000)
        fill_up(disk)
        assert keep_small(log)
        assert sizes(log)[0] < 100


WRITER = """
import sys, time
line = "x" * 300_000
for number in range(200):
    print(number, line, flush=True)
while True:  # a line may be lost while the log is rotated
    print("done", flush=True)
    time.sleep(0.2)
"""


def test_what_a_running_process_logs_stays_within_the_limit(log: Path) -> None:
    """60 MB, in lines of 300 kB, by a process that is not held up."""
    read_end, write_end = os.pipe()
    process = ChildProcess.start(
        [sys.executable, "-c", WRITER],
        record=log.with_name("process.json"),
        log_file=log,
        environment=os.environ,
        lifeline=read_end,
        name="test",
    )
    try:
        deadline = time.monotonic() + 60
        while process.is_alive() and last_line(log) != "done":
            assert time.monotonic() < deadline
        assert process.is_alive(), "one more look, which rotates"
        # A part may be larger by what the process wrote between two looks. This process does not wait, and on a
        # machine with other work 20 MB come between two of them: a tight bound would measure the machine.
        assert sum(sizes(log)) <= 4 * log_files.LARGEST + 20_000_000
    finally:
        process.end()
        os.close(read_end)
        os.close(write_end)


# reading


@pytest.mark.parametrize("tail", [None, 1, 2, 3, 5, 6, 7, 100])
def test_a_tail_is_the_last_lines_of_all_parts(tmp_path: Path, tail: int | None) -> None:
    contents = ["1\n2\n", "3\n", "", "4\n5\n6"]
    paths = [tmp_path / str(number) for number in range(5)]
    for path, content in zip(paths, contents, strict=False):
        path.write_text(content)
    lines = ["1\n", "2\n", "3\n", "4\n", "5\n", "6"]
    assert list(read(paths, tail)) == (lines if tail is None else lines[-tail:])


@pytest.mark.parametrize("length", [65_535, 65_536, 65_537, 200_000])
def test_a_tail_is_found_wherever_its_lines_begin(tmp_path: Path, length: int) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a\n" + b"b" * length + b"\nc\n" + b"d" * length + b"\n")
    assert [line[0] for line in read([path], 3)] == ["b", "c", "d"]
    assert [line[0] for line in read([path], 4)] == ["a", "b", "c", "d"]


def test_long_lines_are_cut_when_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 3 * 10**6 + b"\n" + b"y" * LONGEST_LINE + b"\n" + b"z" * LONGEST_LINE)
    first, second, third = read([path])
    assert first == "x" * LONGEST_LINE + f"... ({3 * 10**6 - LONGEST_LINE + 1} bytes are left out)\n"
    assert (second, third) == ("y" * LONGEST_LINE + "\n", "z" * LONGEST_LINE)


def test_reading_a_large_log_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes((b"x" * 99 + b"\n") * 300_000 + b"y" * 20 * 2**20)
    tracemalloc.start()
    count = sum(1 for _ in read([path]))
    (last,) = read([path], 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (count, last[0]) == (300_001, "y")
    assert peak < 2**20


# records


def test_a_record_has_a_limited_length_and_keeps_its_beginning_and_its_end() -> None:
    assert shortened("short\nlines") == "short\nlines"
    line = shortened("ValueError: " + "x" * 10**6 + " at the end")
    assert len(line) < 2100
    assert line.startswith("ValueError: xxx")
    assert line.endswith("xxx at the end")
    many = shortened("first\n" + "line\n" * 10**6 + "TypeError: last")
    assert len(many) < 20_100
    assert many.startswith("first\n")
    assert many.endswith("TypeError: last")


def test_the_limit_holds_for_every_logger_of_the_process() -> None:
    """Also for formatters of other libraries, such as vLLM's, which call the base class."""
    program = """
import logging
from tunewright.logs import limit_records
limit_records()
limit_records()
class Other(logging.Formatter):
    def format(self, record):
        return "(other) " + super().format(record)
handler = logging.StreamHandler()
handler.setFormatter(Other("%(levelname)s %(message)s"))
logging.getLogger("vllm").addHandler(handler)
try:
    raise ValueError("bad request: " + "x" * 5_000_000)
except ValueError:
    logging.getLogger("vllm").exception("a request failed: %s", "y" * 5_000_000)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0
    assert done.stderr.startswith("(other) ERROR a request failed: yyy")
    assert "ValueError: bad request: xxx" in done.stderr
    assert len(done.stderr) < 10_000
