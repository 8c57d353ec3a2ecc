"""What an engine has outside of the data folder is removed when its processes have ended, and nothing of others is."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from tunewright.engine import leftovers

MEMORY = Path("/dev/shm")
ENGINE = """
import os, signal
from multiprocessing import shared_memory
from tunewright.engine.leftovers import tag_shared_memory
tag_shared_memory(shared_memory)
made = [shared_memory.SharedMemory(create=True, size=1 << 20) for _ in range(2)]
found = shared_memory.SharedMemory(made[0].name)
print(*[one.name for one in made], flush=True)
os.killpg(0, signal.SIGKILL)
"""
"""As vLLM's processes: Python's tracker of shared memory is killed with them."""


@pytest.fixture
def other() -> Iterator[str]:
    """Shared memory of another service on this machine: a name of that kind, and one of Python's."""
    mine = SharedMemory("tunewright-abcdefgh-0123456789abcdef", create=True, size=16)
    yield mine.name
    mine.close()
    mine.unlink()


def killed(environment: dict[str, str]) -> list[str]:
    """The shared memory of an engine that was killed."""
    done = subprocess.run(
        [sys.executable, "-c", ENGINE],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    return done.stdout.split()


def test_memory_and_sockets_of_a_killed_engine_are_removed_and_nothing_else(
    tmp_path: Path, other: str
) -> None:
    record, sockets = tmp_path / "engines" / "tiny", tmp_path / "sockets"
    sockets.mkdir()
    environment = leftovers.prepare(record, sockets)
    folder = Path(environment["VLLM_RPC_BASE_PATH"])
    assert folder.parent == sockets
    assert folder.stat().st_mode & 0o077 == 0
    (folder / "socket").touch()
    names = killed(environment)
    assert len(names) == 2
    assert all((MEMORY / name).exists() for name in names), "nobody else removes it"
    assert all(name.startswith(folder.name + "-") for name in names)
    leftovers.remove(record)
    assert not any((MEMORY / name).exists() for name in names)
    assert list(sockets.iterdir()) == []
    assert (MEMORY / other).exists()
    leftovers.remove(record)  # nothing is on record


def test_the_next_start_has_another_tag_and_removes_what_the_one_before_has_left(tmp_path: Path) -> None:
    first = leftovers.prepare(tmp_path / "tiny", tmp_path)
    names = killed(first)
    second = leftovers.prepare(tmp_path / "tiny", tmp_path)
    assert first.keys() == second.keys()
    assert not set(first.values()) & set(second.values())
    assert not any((MEMORY / name).exists() for name in names)
    assert not Path(first["VLLM_RPC_BASE_PATH"]).exists()
    assert Path(second["VLLM_RPC_BASE_PATH"]).is_dir()


def test_no_folder_is_made_where_it_cannot_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    sockets = tmp_path / "sockets"
    sockets.mkdir()
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        leftovers.prepare(tmp_path / "tiny", sockets)
    assert list(sockets.iterdir()) == []


def test_a_record_that_names_anything_else_removes_nothing(tmp_path: Path) -> None:
    for name in ("precious", "tunewright-*", "..", ""):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "kept").touch()
        (tmp_path / "leftovers").write_text(str(folder))
        leftovers.remove(tmp_path)
        assert (folder / "kept").exists()


def test_sockets_have_short_paths(tmp_path: Path) -> None:
    """vLLM appends a UUID; a socket's path has at most 107 bytes, and the folder for temporary ones at most 50."""
    environment = leftovers.prepare(tmp_path / "tiny", tmp_path)
    added = len(environment["VLLM_RPC_BASE_PATH"]) - len(str(tmp_path))
    assert 50 + added + 1 + 36 <= 107
