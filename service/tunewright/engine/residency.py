"""Loads and unloads the adapters of each engine. Only this code does so, in the LitServe worker.

The store says which adapters should be loaded. `ResidencyManager` brings the engines into that state, at once on
request and otherwise every half second, and records the actual state for the gateway. An adapter's name in vLLM is the
hash of its content, which is never reused: a new version under an old public name cannot hit the prefix cache of the
old one (vllm #42125).

An adapter is unloaded only after its last request (`engine.leases`). Then both the names in vLLM's server and the
weights in its workers are checked, since unloading in vLLM removes only the name.

The policies of running jobs (`store.policies`) are loaded as adapters are, from the folders of their jobs. Each new one
of a job takes the place of the one before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from tunewright.engine.client import EngineClient
from tunewright.engine.http import EngineError
from tunewright.engine.leases import Drain
from tunewright.engine.tally import Change, Tally
from tunewright.errors import StorageUnavailable
from tunewright.jobs.folder import JobFolder
from tunewright.registry.content import adapter_sha256
from tunewright.registry.workspace import Workspace
from tunewright.store.policies import Policy
from tunewright.store.records import Engine, EngineInfo, TunedModel
from tunewright.store.states import Desired, EngineState, Residency
from tunewright.store.store import Store

log = logging.getLogger("tunewright.engine")

_RETRY_FAILED_AFTER = 30.0
"""Seconds until a failed load is tried again."""
_REPLACED_WITHIN = 5.0
"""Seconds that a policy waits for the one before to leave its place; then another one is taken."""
_DRAIN_SLICE = 0.25
"""Seconds after which a drain checks whether the adapter should be loaded again."""


class ResidencyManager:
    """Loads and unloads adapters. There is a lock for each adapter in each engine (many waiters, one load), and one for
    each engine's memory, so that the effect of a load can be seen by comparing before and after."""

    def __init__(self, store: Store, workspace: Workspace) -> None:
        self._store = store
        self._workspace = workspace
        self._artifacts = workspace.artifacts
        self._drain = Drain(workspace.leases)
        self._tally = Tally(workspace.tally)
        self._clients: dict[str, EngineClient] = {}
        self._locks: dict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._memory: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._failed_at: dict[tuple[str, int, str], float] = {}
        self._swept: set[tuple[str, int]] = set()
        self._unloading: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._policies: dict[tuple[str, str], str] = {}
        """The hash of the policy that was loaded last, by engine and job."""

    async def close(self) -> None:
        """Close the connections to the engines."""
        for client in self._clients.values():
            await client.close()
        self._clients.clear()

    async def load(self, model: TunedModel) -> dict[str, Any]:
        """Record that the adapter should be loaded, and load it now. Raises EngineError with vLLM's reason."""
        if not isinstance(model, Policy):
            await asyncio.to_thread(self._store.models.want, model.name, Desired.LOADED)
        engine = await self._ready_engine(model.base)
        self._failed_at.pop((engine.name, engine.run, model.sha256), None)
        await self._ensure_loaded(engine, model)
        return {"state": "loaded"}

    async def unload(self, model: TunedModel, wait: float) -> dict[str, Any]:
        """Record that the adapter should be unloaded, and unload it after its last request, unless another model has
        the same weights.

        Where this takes longer than `wait` seconds, the answer is `draining`, and the unload continues in the
        background.
        """
        await asyncio.to_thread(self._store.models.want, model.name, Desired.UNLOADED)
        engine = await asyncio.to_thread(self._store.engines.get, model.base)
        if engine is not None and engine.state is EngineState.READY:
            wanted = await self._wanted(model.base)
            if model.sha256 not in wanted:
                unloading = self._start_unload(engine, model.sha256)
                done, _ = await asyncio.wait({unloading}, timeout=wait)
                if not done:
                    return {"state": "draining"}
                unloading.result()
        return {"state": "unloaded"}

    async def reconcile(self) -> bool:
        """One round over all engines: load the adapters that should be loaded, and unload others. Returns whether all
        engines could be asked."""
        could_ask = True
        for engine in await asyncio.to_thread(self._store.engines.list):
            if engine.state is EngineState.READY:
                try:
                    await self._reconcile_engine(engine)
                except EngineError as error:
                    log.warning("engine %s: %s", engine.name, error)
                    could_ask = False
        return could_ask

    async def _reconcile_engine(self, engine: Engine) -> None:
        if (engine.name, engine.run) not in self._swept:
            await self._sweep(engine)
        wanted = await self._wanted(engine.name)
        noted = await asyncio.to_thread(self._store.engines.residents, engine)
        now = asyncio.get_running_loop().time()
        for sha256, model in wanted.items():
            if sha256 in noted and noted[sha256].state is Residency.LOADED:
                continue
            failed = self._failed_at.get((engine.name, engine.run, sha256))
            if failed is None or now - failed > _RETRY_FAILED_AFTER:
                with contextlib.suppress(EngineError):  # recorded in the store; tried again later
                    await self._ensure_loaded(engine, model)
        for sha256 in noted.keys() - wanted.keys():
            self._start_unload(engine, sha256)

    async def _sweep(self, engine: Engine) -> None:
        """Unload what is not recorded as loaded: an earlier worker may have been killed in the middle of a load."""
        async with self._memory[engine.name]:
            noted = await asyncio.to_thread(self._store.engines.residents, engine)
            whole = {
                s: row for s, row in noted.items() if row.state in (Residency.LOADED, Residency.DRAINING)
            }
            client = self._client(engine)
            names = await client.models() - {_info(engine).internal_name}
            for name in names - whole.keys():
                await client.unload(name, None)
            for number in await client.held() - {row.number for row in whole.values()}:
                await client.remove(number)
            for sha256 in noted.keys() - whole.keys():
                await self._note(engine, sha256, None)
            for sha256 in whole.keys() - names:
                await self._note(engine, sha256, None)
        self._swept.add((engine.name, engine.run))

    async def _ensure_loaded(self, engine: Engine, model: TunedModel) -> None:
        async with self._locks[(engine.name, model.sha256)]:
            noted = await asyncio.to_thread(self._store.engines.residents, engine)
            if model.sha256 in noted and noted[model.sha256].state is Residency.LOADED:
                return
            await self._note(engine, model.sha256, Residency.LOADING)
            began = time.monotonic()
            try:
                if _info(engine).fingerprint != model.base_fingerprint:
                    raise EngineError(f"it was trained on another model, which was named {model.base} then")
                if isinstance(model, Policy):
                    await self._leave_place(engine, model)
                async with self._kept(model.sha256):
                    folder = await asyncio.to_thread(self._checked, model)
                    async with self._memory[engine.name]:
                        await self._make_room(engine)
                        number = await self._client(engine).load(model.sha256, folder)
            except StorageUnavailable as error:  # no fault of the adapter
                self._failed_at[(engine.name, engine.run, model.sha256)] = asyncio.get_running_loop().time()
                await self._note(engine, model.sha256, None)
                log.error("engine %s could not load %s: %s", engine.name, model.name, error)
                raise EngineError(error.message) from error
            except EngineError as error:
                self._failed_at[(engine.name, engine.run, model.sha256)] = asyncio.get_running_loop().time()
                await self._note(engine, model.sha256, Residency.FAILED, error=str(error))
                await self._tally.add(engine.name, Change.LOAD_FAILED)
                log.error("engine %s could not load %s: %s", engine.name, model.name, error)
                raise
            self._drain.touch(engine.name, model.sha256)
            await self._note(engine, model.sha256, Residency.LOADED, number=number)
            await self._tally.add(engine.name, Change.LOADED, time.monotonic() - began)
            log.info("engine %s loaded %s", engine.name, model.name)

    @contextlib.asynccontextmanager
    async def _kept(self, sha256: str) -> AsyncIterator[None]:
        """Keep the adapter's files where they are, once they are on this machine."""
        held = self._artifacts.keeping(sha256)
        await asyncio.to_thread(held.__enter__)
        try:
            yield
        finally:
            held.__exit__(None, None, None)

    def _checked(self, model: TunedModel) -> Path:
        """The adapter's folder, after its hash was compared: an incomplete or changed adapter is never loaded into
        vLLM. Raises EngineError and StorageUnavailable."""
        try:
            if isinstance(model, Policy):
                folder = JobFolder(self._workspace.job(model.id)).policy(model.sha256)
            else:
                folder = self._artifacts.fetch(model.sha256)
            found = adapter_sha256(folder)
        except (OSError, ValueError) as error:
            raise EngineError(f"the adapter's files cannot be read: {error}") from error
        if found != model.sha256:
            raise EngineError(f"the adapter's files have changed: their hash is {found}")
        return folder

    async def _leave_place(self, engine: Engine, policy: Policy) -> None:
        """Have the engine unload the job's policy before this one, so that a job has one place at a time."""
        assert policy.job_id is not None, "a policy is a job's"
        key = (engine.name, policy.job_id)
        before = self._policies.get(key)
        self._policies[key] = policy.sha256
        if before not in (None, policy.sha256) and not await self._is_wanted(engine, before):
            await asyncio.wait({self._start_unload(engine, before)}, timeout=_REPLACED_WITHIN)

    async def _make_room(self, engine: Engine) -> None:
        """Evict the least recently used adapter that is neither pinned nor in use, where the engine's slots are
        full."""
        noted = await asyncio.to_thread(self._store.engines.residents, engine)
        loaded = [sha256 for sha256, row in noted.items() if row.state is Residency.LOADED]
        room = _info(engine).max_adapters
        if len(loaded) < room:
            return
        pinned = await asyncio.to_thread(self._store.models.pinned, engine.name)
        for sha256 in sorted(loaded, key=lambda one: self._drain.last_used(engine.name, one)):
            lock = self._locks[(engine.name, sha256)]
            if sha256 in pinned or lock.locked():
                continue
            async with lock:
                unused = await self._drain.wait_unused(engine.name, sha256, 0)
                if unused is None:
                    continue
                with unused:
                    await asyncio.to_thread(self._store.models.want_weights, sha256, Desired.UNLOADED)
                    await asyncio.to_thread(self._store.policies.drop, sha256)
                    await self._note(engine, sha256, None)
                    await self._client(engine).unload(sha256, noted[sha256].number)
            await self._tally.add(engine.name, Change.EVICTED)
            log.info("engine %s evicted %s, the least recently used", engine.name, sha256)
            return
        raise EngineError(
            f"all {len(loaded)} adapters that the engine has room for are pinned or in use (--max-cpu-loras)"
        )

    def _start_unload(self, engine: Engine, sha256: str) -> asyncio.Task[None]:
        """Unload the adapter in the background, in one task however often this is called."""
        key = (engine.name, sha256)
        task = self._unloading.get(key)
        if task is None or task.done():
            task = self._unloading[key] = asyncio.create_task(self._ensure_unloaded(engine, sha256))
            task.add_done_callback(lambda done: _log_failure(done, engine.name, sha256))
        return task

    async def _ensure_unloaded(self, engine: Engine, sha256: str) -> None:
        """Unload the adapter: record that it is drained, so that the gateway sends no more requests, wait for the last
        one, then have the engine unload it."""
        async with self._locks[(engine.name, sha256)]:
            row = (await asyncio.to_thread(self._store.engines.residents, engine)).get(sha256)
            if row is None or await self._is_wanted(engine, sha256):
                return
            if row.state is Residency.FAILED:
                await self._note(engine, sha256, None)
                return
            await self._note(engine, sha256, Residency.DRAINING, number=row.number)
            while (unused := await self._drain.wait_unused(engine.name, sha256, _DRAIN_SLICE)) is None:
                current = await asyncio.to_thread(self._store.engines.get, engine.name)
                if current is None or (current.run, current.state) != (engine.run, EngineState.READY):
                    return  # this run of the engine has ended, so it holds no adapters
                if await self._is_wanted(engine, sha256):
                    await self._note(engine, sha256, Residency.LOADED, number=row.number)
                    return
            with unused:
                async with self._memory[engine.name]:
                    await self._client(engine).unload(sha256, row.number)
                await self._note(engine, sha256, None)
            await self._tally.add(engine.name, Change.UNLOADED)
            log.info("engine %s unloaded %s", engine.name, sha256)

    async def _is_wanted(self, engine: Engine, sha256: str) -> bool:
        return sha256 in await self._wanted(engine.name)

    async def _wanted(self, base: str) -> Mapping[str, TunedModel]:
        """The adapters and policies that the engine of the base should hold, by hash."""
        policies = await asyncio.to_thread(self._store.policies.wanted, base)
        return {**policies, **await asyncio.to_thread(self._store.models.wanted_adapters, base)}

    async def _ready_engine(self, name: str) -> Engine:
        engine = await asyncio.to_thread(self._store.engines.get, name)
        if engine is None:
            raise EngineError(f"no engine serves {name}")
        if engine.state is not EngineState.READY:
            why = f": {engine.reason}" if engine.reason else ""
            raise EngineError(f"the engine of {name} is not ready ({engine.state.value}{why})")
        return engine

    async def _note(
        self,
        engine: Engine,
        sha256: str,
        state: Residency | None,
        *,
        error: str | None = None,
        number: int | None = None,
    ) -> None:
        await asyncio.to_thread(
            self._store.engines.set_residency, engine, sha256, state, error=error, number=number
        )

    def _client(self, engine: Engine) -> EngineClient:
        assert engine.socket is not None, "a ready engine has a socket"
        client = self._clients.get(engine.socket)
        if client is None:
            client = self._clients[engine.socket] = EngineClient(engine.socket)
        return client


def _info(engine: Engine) -> EngineInfo:
    assert engine.info is not None, "a ready engine was started"
    return engine.info


def _log_failure(task: asyncio.Task[None], engine: str, sha256: str) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("engine %s could not unload %s: %s", engine, sha256, error)
