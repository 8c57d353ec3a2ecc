"""Leases: no request is admitted to an adapter that is being unloaded, and none in use is unloaded."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tunewright.engine.leases import ENGINE, Drain, Leases, prune

pytestmark = pytest.mark.anyio

ADAPTER = ("tiny/base", "a" * 64)


async def unused(folder: Path, timeout: float = 0.0) -> bool:
    found = await Drain(folder).wait_unused(*ADAPTER, timeout)
    if found is not None:
        with found:
            return True
    return False


async def test_an_adapter_is_unused_before_the_first_and_after_the_last_lease(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    assert await unused(tmp_path)
    assert leases.take(*ADAPTER)
    assert leases.take(*ADAPTER)
    assert leases.count(*ADAPTER) == 2
    assert not await unused(tmp_path)
    leases.give_back(*ADAPTER)
    assert not await unused(tmp_path)
    leases.give_back(*ADAPTER)
    assert leases.count(*ADAPTER) == 0
    assert await unused(tmp_path)


async def test_adapters_are_apart(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    assert leases.take("tiny/base", "b" * 64)
    assert leases.take("other", "a" * 64)
    assert await unused(tmp_path)


async def test_nobody_is_admitted_while_it_is_let_go_of(tmp_path: Path) -> None:
    leases = Leases(tmp_path)

    found = await Drain(tmp_path).wait_unused(*ADAPTER, 0)
    assert found is not None
    with found:
        assert not leases.take(*ADAPTER)
        assert leases.count(*ADAPTER) == 0
    assert leases.take(*ADAPTER)


async def test_a_drain_waits_for_the_last_lease(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    leases.take(*ADAPTER)
    asyncio.get_running_loop().call_later(0.3, leases.give_back, *ADAPTER)
    began = time.monotonic()
    found = await Drain(tmp_path).wait_unused(*ADAPTER, 5)
    assert found is not None
    with found:
        assert 0.25 < time.monotonic() - began < 2


async def test_a_cancelled_drain_lets_requests_in_again(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    leases.take(*ADAPTER)

    task = asyncio.create_task(Drain(tmp_path).wait_unused(*ADAPTER, 60))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    leases.give_back(*ADAPTER)
    assert leases.take(*ADAPTER)


def test_when_it_was_last_used_is_known(tmp_path: Path) -> None:
    leases, drain = Leases(tmp_path), Drain(tmp_path)
    assert drain.last_used(*ADAPTER) == 0.0
    drain.touch(*ADAPTER)
    os.utime(next(tmp_path.iterdir()), (1.0, 1.0))
    assert drain.last_used(*ADAPTER) == 1.0
    leases.take(*ADAPTER)
    leases.give_back(*ADAPTER)
    assert abs(drain.last_used(*ADAPTER) - time.time()) < 5


def _hold(folder: Path, holding: multiprocessing.synchronize.Event) -> None:
    Leases(folder).take(*ADAPTER)
    holding.set()
    time.sleep(60)


async def test_a_killed_gateway_gives_its_leases_back(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    holding = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, holding))
    process.start()
    assert holding.wait(20)
    assert not await unused(tmp_path)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert await unused(tmp_path, 2)


def _admit(folder: Path, state: Path, seconds: float, seed: int) -> None:
    """A gateway: takes the lease, reads the state, and while it uses the adapter, that must stay loaded."""
    leases, chance = Leases(folder), random.Random(seed)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not leases.take(*ADAPTER):
            continue
        try:
            if state.exists():
                time.sleep(chance.random() * 0.002)
                if (folder / "gone").exists():
                    os._exit(1)  # the engine unloaded it in the middle of a request
        finally:
            leases.give_back(*ADAPTER)
    os._exit(0)


async def test_an_unload_never_races_an_admission(tmp_path: Path) -> None:
    """Three gateways take leases all the time; the worker drains and loads as residency does, some hundred times."""
    folder, state = tmp_path / "leases", tmp_path / "loaded"
    folder.mkdir()
    gone = folder / "gone"
    state.touch()
    context = multiprocessing.get_context("spawn")
    gateways = [context.Process(target=_admit, args=(folder, state, 2.0, seed)) for seed in range(3)]
    for gateway in gateways:
        gateway.start()
    rounds = 0
    while any(gateway.is_alive() for gateway in gateways):
        state.unlink()  # it is being drained: read by requests that come now
        found = await Drain(folder).wait_unused(*ADAPTER, 20)
        assert found is not None
        with found:
            gone.touch()  # the engine unloads it...
            await asyncio.sleep(0.001)
            gone.unlink()  # ...and loads it again
        state.touch()
        rounds += 1
        await asyncio.sleep(0.002)
    for gateway in gateways:
        gateway.join()
    assert [gateway.exitcode for gateway in gateways] == [0, 0, 0]
    assert rounds > 20


async def test_leases_of_what_is_gone_are_removed_unless_a_request_holds_them(tmp_path: Path) -> None:
    leases, (engine, sha256) = Leases(tmp_path), ADAPTER
    for key in ((engine, sha256), (engine, "b" * 64), (engine, ENGINE), ("gone", sha256), ("gone", ENGINE)):
        assert leases.take(*key)
        leases.give_back(*key)
    assert leases.take("gone", "c" * 64)
    assert prune(tmp_path, [engine], [sha256], time.time() - 3600) == 0, "used within the hour"
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    assert prune(tmp_path, [engine], [sha256], time.time() - 3600) == 3
    assert len(list(tmp_path.iterdir())) == 3
    assert leases.count("gone", "c" * 64) == 1
    assert Drain(tmp_path).try_unused("gone", "c" * 64) is None


async def test_a_lease_whose_file_is_removed_meanwhile_still_excludes_an_unload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def open_and_lose(path: Path, *rest: int) -> int:
        descriptor = opened(path, *rest)
        monkeypatch.setattr(os, "open", opened)
        Path(path).unlink()
        return descriptor

    monkeypatch.setattr(os, "open", open_and_lose)
    assert Leases(tmp_path).take(*ADAPTER)
    assert not await unused(tmp_path)
