"""A process without a heartbeat for too long hangs; a machine that slept or a full disk is no evidence of that."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tunewright.supervisor.heartbeat import START_ALLOWANCE, HeartbeatWatch, beat

LIMIT = 60.0


class World:
    """A watch, its clock, and the process that it watches."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "x.heartbeat"
        self.now = 1000.0
        self.beats = 0
        self.watch = HeartbeatWatch(self.path, LIMIT, lambda: self.now)

    def beat(self) -> None:
        self.beats += 1
        beat(self.path)
        os.utime(self.path, (self.beats, self.beats))  # whatever the system's clock says

    def hangs_after(self, seconds: float, step: float = 0.5) -> bool:
        """Check it repeatedly over this time."""
        for _ in range(int(seconds / step)):
            self.now += step
            if self.watch.hangs():
                return True
        return False


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_silence_over_the_limit_is_a_hang(world: World) -> None:
    world.beat()
    assert not world.hangs_after(LIMIT - 1)
    assert world.hangs_after(3)


def test_beats_begin_the_time_anew_whatever_time_the_file_has(world: World) -> None:
    for _ in range(5):
        world.beat()
        assert not world.hangs_after(LIMIT - 1)
    os.utime(world.path, (1, 1))
    assert not world.hangs_after(LIMIT - 1), "set back: a change all the same"


def test_until_its_first_beat_a_process_has_more_time(world: World) -> None:
    assert not world.hangs_after(LIMIT + START_ALLOWANCE - 1)
    assert world.hangs_after(3)


def test_the_last_beat_of_an_earlier_process_is_not_the_first_of_the_next(world: World) -> None:
    world.beat()
    assert world.hangs_after(LIMIT + 1)
    world.watch.begin()
    assert not world.hangs_after(LIMIT + START_ALLOWANCE - 1)
    world.beat()
    assert not world.hangs_after(LIMIT - 1)
    assert world.hangs_after(3)


def test_time_in_which_the_observer_did_not_run_counts_for_nothing(world: World) -> None:
    world.beat()
    assert not world.hangs_after(LIMIT - 5)
    world.now += 3600
    assert not world.watch.hangs(), "the machine slept"
    assert not world.hangs_after(LIMIT - 1), "and it has its whole time again"
    assert world.hangs_after(3)


def test_nothing_hangs_where_the_heartbeat_cannot_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.beat()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(os, "utime", refuse)
        assert not world.hangs_after(10 * LIMIT)
    assert world.hangs_after(LIMIT + 1), "once it can"


def test_looking_does_not_change_the_heartbeat(world: World) -> None:
    world.beat()
    before = world.path.stat().st_mtime_ns
    assert world.hangs_after(LIMIT + 1)
    assert world.path.stat().st_mtime_ns == before, "GET /ready says since when"


def test_a_process_that_cannot_beat_goes_on(tmp_path: Path) -> None:
    beat(tmp_path / "no" / "such" / "folder")
