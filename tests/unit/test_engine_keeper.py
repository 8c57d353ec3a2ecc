"""Which engines a scheduler adopts when it starts, and where: devices and models may have changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest

from rows import PRODUCT
from tunewright.config import Base, Settings, embedded_base_path
from tunewright.engine.command import EngineOptions
from tunewright.registry.workspace import Workspace
from tunewright.scheduler import engines
from tunewright.scheduler.devices import Devices
from tunewright.scheduler.engines import EngineKeeper
from tunewright.scheduler.processes import ChildProcess, Exit
from tunewright.scheduler.served import Served, Source, socket_name
from tunewright.store.records import Deployment, Engine
from tunewright.store.states import EngineState
from tunewright.store.store import Store

Keep = Callable[..., EngineKeeper]
FULL = "ft:tiny:full:1"


@pytest.fixture
def keep(store: Store, data: Workspace) -> Iterator[Keep]:
    """A keeper that is never ticked: nothing is started."""
    reading, writing = os.pipe()
    kept: list[EngineKeeper] = []

    def make(devices: list[str], **options: Any) -> EngineKeeper:
        settings = Settings(base=["tiny=/nowhere"], data_dir=data.path, **options)
        kept.append(EngineKeeper(settings, store, data, reading, Devices(devices, store)))
        return kept[-1]

    yield make
    for keeper in kept:
        keeper.stop(0)
    os.close(reading)
    os.close(writing)


def deployed(store: Store, share: float, asked: dict[str, Any], model: str = FULL) -> Deployment:
    row = {"id": f"model-{model}", "kind": "full", "source": "job", "lineage": {}, "job_id": None}
    store.models.register({**PRODUCT, **row, "name": model, "method": "full"})
    options = asdict(EngineOptions("cuda:1", gpu_memory_utilization=share, weights_bytes=1))
    return store.deployments.create(model, asked, lambda _: options)


def now(store: Store, model: str = FULL) -> tuple[Deployment, Engine]:
    found = store.deployments.get(model)
    assert found is not None
    assert found[1] is not None
    return found[0], found[1]


def test_deployments_are_trained_on_and_restarted_as_bases_are(store: Store, keep: Keep) -> None:
    deployed(store, 0.3, {})
    keeper = keep(["cuda:0", "cuda:1"])
    assert keeper.names() == ["tiny", FULL]
    assert now(store)[0].options["device"] == "cuda:1", "it stays where it was"
    assert [engine.state for engine in store.engines.list()] == [EngineState.STOPPED] * 2


def test_one_whose_device_is_gone_goes_to_another(store: Store, keep: Keep) -> None:
    deployed(store, 0.3, {"gpu_memory_utilization": 0.3})
    keep(["cuda:0"])
    options = now(store)[0].options
    assert (options["device"], options["gpu_memory_utilization"]) == ("cuda:0", 0.3)


def test_one_that_finds_no_room_any_more_has_failed_and_says_so(store: Store, keep: Keep) -> None:
    deployed(store, 0.3, {"gpu_memory_utilization": 0.3})
    keep(["cuda:0"], gpu_memory_utilization=0.8)
    engine = now(store)[1]
    assert engine.state is EngineState.FAILED
    assert engine.reason is not None
    assert "tiny has 0.8" in engine.reason


def test_one_that_was_put_on_a_device_that_is_gone_says_so(store: Store, keep: Keep) -> None:
    deployed(store, 0.3, {"device": "cuda:1"})
    keep(["cuda:0"])
    engine = now(store)[1]
    assert (engine.state, "no device cuda:1" in str(engine.reason)) == (EngineState.FAILED, True)


def test_a_failed_one_stays_so_when_only_the_scheduler_starts_anew(store: Store, keep: Keep) -> None:
    deployed(store, 0.3, {})
    store.engines.set_state(FULL, EngineState.FAILED, reason="ValueError: no")
    keep(["cuda:0", "cuda:1"])
    engine = now(store)[1]
    assert (engine.state, engine.reason) == (EngineState.FAILED, "ValueError: no")


def test_sockets_are_found_again_and_never_used_for_another_deployment(store: Store) -> None:
    first = deployed(store, 0.1, {})
    name = socket_name(FULL, first)
    assert socket_name(FULL, first) == name
    store.deployments.remove(first.id)
    again = store.deployments.create(FULL, {}, lambda _: first.options)
    assert len({name, socket_name(FULL, again), socket_name(FULL, None), socket_name("tiny", None)}) == 4


def test_an_engine_starts_with_its_slots_and_records_them(
    store: Store, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Started(Exception):
        pass

    def start(command: list[str], **_: Any) -> None:
        raise Started(command[command.index("--max-loras") + 1])

    monkeypatch.setattr(ChildProcess, "start", start)
    keeper = keep(["cpu"], fork_server_idle=0)
    served = keeper._served["tiny"]
    served.source = Source(Base("tiny", str(embedded_base_path())))
    with pytest.raises(Started, match="4"):
        keeper._start(served, keeper._find(served))
    engine = store.engines.get("tiny")
    assert engine is not None
    assert engine.info is not None
    assert engine.info.max_loras == 4


class Running:
    """A process of an engine that runs until it is ended."""

    def __init__(self, pid: int = 1) -> None:
        self.pid, self.ended = pid, False

    def is_alive(self) -> bool:
        return not self.ended

    def exit(self) -> Exit:
        return Exit(None)

    def terminate(self) -> None:
        pass

    def end(self) -> None:
        self.ended = True

    @property
    def group(self) -> Any:
        return SimpleNamespace(wait=lambda _: True)


def started(keeper: EngineKeeper, monkeypatch: pytest.MonkeyPatch, process: Running) -> Served:
    """The engine of `tiny`, which is healthy as long as nothing else is said."""
    monkeypatch.setattr(engines.ChildProcess, "start", lambda *_, **__: process)
    monkeypatch.setattr(engines, "probe", lambda _: {"data": []})
    monkeypatch.setattr(engines, "find_fault", lambda *_: None)
    monkeypatch.setattr(engines, "_PROBE_EVERY", 0.0)
    monkeypatch.setattr(engines, "_SEARCH_EVERY", 0.0)
    served = keeper._served["tiny"]
    served.source = Source(Base("tiny", str(embedded_base_path())))
    served.info = keeper._find(served)
    keeper._start(served, served.info)
    return served


def until(keeper: EngineKeeper, served: Served, condition: Callable[[], bool]) -> None:
    """Check its health until this is so."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        keeper._check_health(served)
        time.sleep(0.001)


def test_an_engine_that_is_healthy_and_answers_nothing_is_not_ready_at_once_and_then_started_again(
    store: Store, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat template that loops keeps vLLM's renderer busy for ever, while `/health` and `/v1/models` answer."""
    faults = Queue[str | None]()
    searched: list[str] = []

    def search(_: Any, name: str) -> str | None:
        searched.append(name)
        return faults.get(timeout=20)

    process = Running()
    keeper = keep(["cpu"], fork_server_idle=0)
    served = started(keeper, monkeypatch, process)
    monkeypatch.setattr(engines, "find_fault", search)
    for _ in range(3):
        faults.put(None)
    until(keeper, served, lambda: len(searched) > 3)
    assert state(store) == (EngineState.READY, None)
    faults.put("it tokenized nothing for 12 s")
    until(keeper, served, lambda: len(searched) > 4)
    assert state(store) == (EngineState.READY, "it tokenized nothing for 12 s"), "told, and others go on"
    assert not process.ended
    faults.put(None)
    until(keeper, served, lambda: len(searched) > 5)
    assert state(store) == (EngineState.READY, None)
    for _ in range(2):
        faults.put("it tokenized nothing for 12 s")
    until(keeper, served, lambda: served.state is EngineState.BACKOFF)
    assert process.ended
    assert state(store) == (EngineState.BACKOFF, "it tokenized nothing for 12 s, and was started again")


def test_a_process_of_vllm_that_ended_beside_its_server_ends_the_engine(
    store: Store, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's server takes up to 10 s to notice that its EngineCore was killed, and answers nothing meanwhile."""
    keeper = keep(["cpu"], fork_server_idle=0)
    core = subprocess.Popen(["VLLM::EngineCore", "600"], executable=shutil.which("sleep"))
    other = subprocess.Popen(["a tracker", "600"], executable=shutil.which("sleep"))
    try:
        served = started(keeper, monkeypatch, process := Running(os.getpid()))
        until(keeper, served, lambda: served.state is EngineState.READY)
        assert served.parts is not None
        assert [title.split()[0] for title in served.parts.values()] == ["VLLM::EngineCore"]
        other.kill()
        other.wait()
        keeper.tick()
        assert state(store) == (EngineState.READY, None)
        core.kill()
        until(keeper, served, lambda: served.lost_part() is not None)
        keeper.tick()
        assert process.ended
        told = state(store)
    finally:
        for one in (core, other):
            one.kill()
            one.wait()
    assert (told[0], str(told[1]).split(" 600 ")[0]) == (EngineState.BACKOFF, "its process VLLM::EngineCore")


def test_an_error_of_the_database_while_an_engine_is_given_up_leaves_none_that_runs_and_is_forgotten(
    store: Store, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError("the disk is full")

    deployed(store, 0.3, {})
    served = (keeper := keep(["cuda:0", "cuda:1"]))._served[FULL]
    monkeypatch.setattr(engines, "MAX_STARTS", 1)
    served.process = process = Running()
    with monkeypatch.context() as broken:
        broken.setattr(store.deployments, "fail", fails)
        with pytest.raises(OSError, match="full"):
            keeper._died(served, "ValueError: no")
    assert process.ended
    assert served.process is None
    assert served.state is not EngineState.FAILED, "it is tried again, and then given up in the database too"

    served.process = Running()
    keeper._died(served, "ValueError: no")
    assert (served.state, now(store)[1].state) == (EngineState.FAILED, EngineState.FAILED)


def tagged(data: Workspace) -> list[Path]:
    """The folder of sockets and the shared memory of the engine's last start; the memory is made here."""
    folder = Path((data.engine("tiny") / "leftovers").read_text())
    memory = Path("/dev/shm") / f"{folder.name}-0"
    memory.touch()
    assert folder.is_dir()
    return [folder, memory]


def test_what_an_engine_leaves_is_removed_when_it_has_ended(
    store: Store, data: Workspace, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = keep(["cpu"], fork_server_idle=0)
    served = started(keeper, monkeypatch, Running())
    left = tagged(data)
    keeper._died(served, "it stopped answering")
    assert not any(path.exists() for path in left), "after a crash"
    served.process = None
    keeper._launch(served, ["vllm"])
    left = tagged(data)
    keeper.stop(0)
    assert not any(path.exists() for path in left), "after a stop"


def test_the_next_scheduler_removes_what_the_engine_of_a_killed_service_left(
    store: Store, data: Workspace, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(keep(["cpu"], fork_server_idle=0), monkeypatch, Running())
    left = tagged(data)
    keep(["cpu"])
    assert not any(path.exists() for path in left)


def state(store: Store) -> tuple[EngineState, str | None]:
    engine = store.engines.get("tiny")
    assert engine is not None
    return engine.state, engine.reason
