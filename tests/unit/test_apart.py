"""What reads the files of strangers has a process of its own, with limits."""

from __future__ import annotations

import operator
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunewright import apart
from tunewright.apart import CutOff, OutOfMemory, call_apart
from tunewright.errors import InvalidAdapter
from tunewright.registry.adapter_archive import unpack
from tunewright.registry.adapter_check import read_weights
from tunewright.registry.adapter_intake import base_hint


def test_results_and_errors_come_back_as_they_are(tmp_path: Path) -> None:
    assert call_apart(operator.add, [], 1, 2) == 3
    assert call_apart(os.getpid, []) != os.getpid()
    with pytest.raises(InvalidAdapter) as refused:
        call_apart(base_hint, [], b"{")
    assert (refused.value.code, refused.value.status) == ("adapter_invalid", 400)
    with pytest.raises(FileNotFoundError):
        call_apart(os.stat, [], tmp_path / "absent")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        call_apart(operator.truediv, [], 1, 0)


def test_files_are_read_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no archive")
    with (tmp_path / "a.tar").open("rb") as archive, pytest.raises(InvalidAdapter) as refused:
        call_apart(unpack, [archive], tmp_path, 10)
    assert refused.value.code == "archive_refused"


@pytest.mark.parametrize(("function", "argument"), [(sum, range(10**12)), (time.sleep, 60)])
def test_what_takes_too_long_is_ended(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], argument: Any
) -> None:
    monkeypatch.setattr(apart, "_SECONDS", 1)
    began = time.monotonic()
    with pytest.raises(CutOff, match="took more than 1 s"):
        call_apart(function, [], argument)
    assert time.monotonic() - began < 15


def test_what_takes_too_much_memory_is_ended() -> None:
    with pytest.raises(OutOfMemory, match="512 MiB of memory"):
        call_apart(bytearray, [], 2**30)


def test_a_header_that_becomes_gigabytes_is_refused(tmp_path: Path) -> None:
    header = b'{"a": [' + b'{"a":1},' * (4 * 2**20 - 10) + b"1]}"
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with file.open("rb") as weights, pytest.raises((OutOfMemory, CutOff)):
        call_apart(read_weights, [weights])


def test_a_crash_is_no_crash_of_the_caller() -> None:
    with pytest.raises(CutOff):
        call_apart(os._exit, [], 1)
    with pytest.raises(CutOff):
        call_apart(signal.raise_signal, [], signal.SIGKILL)


def test_a_helper_that_was_killed_is_started_again() -> None:
    before = call_apart(os.getppid, [])
    os.kill(before, signal.SIGKILL)
    after = call_apart(os.getppid, [])
    assert after not in (before, os.getpid())


def test_calls_share_the_helper_and_cost_little() -> None:
    call_apart(os.getpid, [])
    took = []
    for _ in range(20):
        began = time.monotonic()
        call_apart(os.getpid, [])
        took.append(time.monotonic() - began)
    assert statistics.median(took) < 0.1


def test_many_callers_wait_for_each_other() -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(call_apart(os.getpid, []))) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(set(found)) == 24


def test_the_key_of_the_service_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_API_KEY", "secret")
    os.kill(call_apart(os.getppid, []), signal.SIGKILL)
    assert call_apart(os.getenv, [], "TUNEWRIGHT_API_KEY") is None
