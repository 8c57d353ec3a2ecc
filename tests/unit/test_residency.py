"""Residency with a stand-in for vLLM that removes names but keeps weights, as vLLM does."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from rows import Publish, engine_info
from tunewright.engine.http import EngineError
from tunewright.engine.leases import Leases
from tunewright.engine.residency import ResidencyManager
from tunewright.engine.tally import read_tally
from tunewright.registry.workspace import Workspace
from tunewright.store.records import Engine, TunedModel
from tunewright.store.states import EngineState, Residency
from tunewright.store.store import Store

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

BASE, INTERNAL, FINGERPRINT = "tiny", "base-0", "f" * 64
ROOM = 3

_spec = importlib.util.spec_from_file_location(
    "fake_vllm_server", Path(__file__).parents[1] / "fakes/vllm/entrypoints/openai/api_server.py"
)
assert _spec is not None
assert _spec.loader is not None
fake = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake)


class Setting:
    """A store, a data folder and an engine; `adapter()` registers one more."""

    def __init__(self, store: Store, data: Workspace, publish: Publish, socket: Path) -> None:
        self.store, self.data, self._publish, self._socket = store, data, publish, socket
        self.server = fake.Server(INTERNAL, ROOM + 1)
        self.engine = self.new_run()
        self.leases = Leases(data.leases)
        self._count = 0

    def new_run(self) -> Engine:
        self.store.engines.declare([BASE])
        info = engine_info(internal_name=INTERNAL, fingerprint=FINGERPRINT, max_adapters=ROOM)
        self.store.engines.starting(BASE, str(self._socket), info)
        self.store.engines.set_state(BASE, EngineState.READY)
        engine = self.store.engines.get(BASE)
        assert engine is not None
        return engine

    def adapter(self, *, desired: str = "unloaded", like: TunedModel | None = None) -> TunedModel:
        self._count += 1
        name = f"ft:tiny::{self._count}"
        if like is None:
            folder = self.data.tmp / name.replace(":", "-")
            folder.mkdir()
            (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "target_modules": ["q"]}))
            (folder / "adapter_model.safetensors").write_text(name)
            sha256 = self.data.artifacts.put(folder)
        else:
            sha256 = like.sha256
        assert self._publish(
            {
                "name": name,
                "sha256": sha256,
                "base": BASE,
                "base_fingerprint": FINGERPRINT,
                "desired": desired,
            }
        )
        model = self.store.models.get(name)
        assert model is not None
        return model

    def state(self, model: TunedModel) -> Residency | None:
        row = self.store.engines.residents(self.engine).get(model.sha256)
        return row.state if row else None

    def in_memory(self) -> set[str]:
        return set(self.server.memory.values())

    def use(self, model: TunedModel) -> Callable[[], None]:
        """Begins a request that uses the model; call the returned function to end it."""
        assert self.leases.take(BASE, model.sha256)
        return lambda: self.leases.give_back(BASE, model.sha256)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[ResidencyManager]:
        runner = web.AppRunner(fake.application(self.server), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(self._socket)).start()
        manager = ResidencyManager(self.store, self.data)
        try:
            yield manager
        finally:
            await manager.close()
            await runner.cleanup()


@pytest.fixture
def setting(store: Store, data: Workspace, publish_model: Publish, socket: Path) -> Setting:
    return Setting(store, data, publish_model, socket)


@pytest.fixture
async def manager(setting: Setting) -> AsyncIterator[ResidencyManager]:
    """A manager whose engine runs."""
    async with setting.serving() as manager:
        yield manager


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_unloading_frees_the_workers_memory_too(setting: Setting, manager: ResidencyManager) -> None:
    first, second = setting.adapter(), setting.adapter()

    await manager.load(first)
    await manager.load(second)
    assert setting.in_memory() == {first.sha256, second.sha256}
    assert await manager.unload(first, 5) == {"state": "unloaded"}
    assert setting.in_memory() == {second.sha256}
    assert setting.state(first) is None


async def test_an_engine_that_keeps_the_weights_is_told_on(
    setting: Setting, manager: ResidencyManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = setting.adapter()

    await manager.load(model)
    setting.server.memory = _Sticky(setting.server.memory)
    with pytest.raises(EngineError, match="still hold it"):
        await manager.unload(model, 5)


class _Sticky(dict[int, str]):
    def pop(self, *_: Any) -> None:  # type: ignore[override]
        return None


async def test_a_running_request_keeps_its_adapter_and_new_ones_do_not_get_it(
    setting: Setting, manager: ResidencyManager
) -> None:
    model = setting.adapter()

    await manager.load(model)
    ends = setting.use(model)
    assert await manager.unload(model, 0.2) == {"state": "draining"}
    assert setting.state(model) is Residency.DRAINING
    assert setting.in_memory() == {model.sha256}
    ends()
    await until(lambda: setting.state(model) is None)
    assert setting.in_memory() == set()


async def test_wanted_again_while_it_drains_it_stays(setting: Setting, manager: ResidencyManager) -> None:
    model = setting.adapter()

    await manager.load(model)
    number = next(iter(setting.server.memory))
    ends = setting.use(model)
    await manager.unload(model, 0.1)
    assert await manager.load(model) == {"state": "loaded"}
    ends()
    await manager.reconcile()
    assert setting.state(model) is Residency.LOADED
    assert setting.server.memory == {number: model.sha256}, "it was never let go of"


async def test_the_same_weights_under_two_names_are_held_once_until_neither_wants_them(
    setting: Setting, manager: ResidencyManager
) -> None:
    first = setting.adapter()
    twin = setting.adapter(like=first)

    await manager.load(first)
    await manager.load(twin)
    assert len(setting.server.memory) == 1
    await manager.unload(first, 1)
    assert setting.state(twin) is Residency.LOADED
    await manager.unload(twin, 1)
    assert setting.server.memory == {}


async def test_the_least_recently_used_makes_room_never_a_pinned_or_a_busy_one(
    setting: Setting, manager: ResidencyManager
) -> None:
    pinned, busy, old, new, newer = (setting.adapter() for _ in range(5))

    for number, model in enumerate((pinned, busy, old)):
        await manager.load(model)
        path = next(p for p in setting.data.leases.iterdir() if p.name.endswith(model.sha256))
        os.utime(path, (number, number))
    setting.store.models.pin(pinned.name, True)
    ends = setting.use(busy)
    await manager.load(new)
    assert setting.in_memory() == {pinned.sha256, busy.sha256, new.sha256}
    setting.store.models.pin(new.name, True)
    with pytest.raises(EngineError, match="pinned or in use"):
        await manager.load(newer)
    ends()
    await manager.load(newer)
    assert setting.in_memory() == {pinned.sha256, newer.sha256, new.sha256}
    await manager.reconcile()
    assert setting.in_memory() == {pinned.sha256, newer.sha256, new.sha256}, "what was evicted stays out"
    counted = read_tally(setting.data.tally)[BASE]
    assert counted.pop("load_seconds") > 0
    assert counted == {"loaded": 5, "load_failed": 1, "evicted": 2}
    await manager.unload(new, wait=5)
    assert read_tally(setting.data.tally)[BASE]["unloaded"] == 1


async def test_many_wait_for_one_load(setting: Setting, manager: ResidencyManager) -> None:
    model = setting.adapter()

    await asyncio.gather(*(manager.load(model) for _ in range(20)))
    assert setting.server._last == 1


async def test_a_new_worker_sweeps_what_a_killed_one_left_half_done(
    setting: Setting, manager: ResidencyManager
) -> None:
    """Killed between the engine's load and its record, and between the removal of a name and of its memory."""
    kept, half = setting.adapter(desired="loaded"), setting.adapter()

    await manager.load(kept)
    number = next(iter(setting.server.memory))
    setting.server._adapters[half.sha256] = 7
    setting.server.memory |= {7: half.sha256, 8: "nobody"}
    setting.store.engines.set_residency(setting.engine, half.sha256, Residency.LOADING)
    await ResidencyManager(setting.store, setting.data).reconcile()
    await until(lambda: setting.server.memory == {number: kept.sha256})
    assert set(setting.server._adapters) == {kept.sha256}
    assert setting.state(half) is None


async def test_after_an_engines_restart_what_was_wanted_is_loaded_again(
    setting: Setting, manager: ResidencyManager
) -> None:
    model = setting.adapter()

    await manager.load(model)
    setting.server._adapters.clear()
    setting.server.memory.clear()
    setting.engine = setting.new_run()
    await manager.reconcile()
    assert setting.in_memory() == {model.sha256}
    assert setting.state(model) is Residency.LOADED
