"""Which adapters each engine holds. One writer: this code, in the LitServe worker.

The store says which adapters should be loaded; `Residency` makes it so, now when asked and by itself every half
second, and notes what is there for the gateway to read. An adapter's name inside vLLM is its content hash, never
reused, so that a new version under an old public name can never meet the old one's cached prefix (vllm #42125).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

from tunewright.engine.client import EngineClient, EngineError
from tunewright.registry.data_folder import DataFolder, adapter_sha256
from tunewright.store.records import Engine, TunedModel
from tunewright.store.states import EngineState, Residency
from tunewright.store.store import Store

log = logging.getLogger("tunewright.engine")

_RETRY_FAILED_AFTER = 30.0


class ResidencyManager:
    """Owns load and unload. A lock for each adapter of each engine: many waiters, one load."""

    def __init__(self, store: Store, data: DataFolder) -> None:
        self._store = store
        self._data = data
        self._clients: dict[str, EngineClient] = {}
        self._locks: dict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._failed_at: dict[tuple[str, int, str], float] = {}

    async def load(self, model: TunedModel) -> dict[str, Any]:
        """Want the adapter loaded, and load it now. Raises EngineError with vLLM's reason."""
        await asyncio.to_thread(self._store.models.want, model.name, "loaded")
        engine = await self._ready_engine(model.base)
        self._failed_at.pop((engine.name, engine.run, model.sha256), None)
        await self._ensure_loaded(engine, model)
        return {"state": "loaded"}

    async def unload(self, model: TunedModel) -> dict[str, Any]:
        """Want the adapter unloaded, and let go of it unless another model has the same weights."""
        await asyncio.to_thread(self._store.models.want, model.name, "unloaded")
        engine = await asyncio.to_thread(self._store.engines.get, model.base)
        if engine is not None and engine.state is EngineState.READY:
            wanted = await asyncio.to_thread(self._store.models.wanted_adapters, model.base)
            if model.sha256 not in wanted:
                await self._ensure_unloaded(engine, model.sha256)
        return {"state": "unloaded"}

    async def reconcile(self) -> None:
        """One round over all engines: load what is wanted, unload what is not."""
        for engine in await asyncio.to_thread(self._store.engines.list):
            if engine.state is EngineState.READY:
                try:
                    await self._reconcile_engine(engine)
                except EngineError as error:
                    log.warning("engine %s: %s", engine.name, error)

    async def _reconcile_engine(self, engine: Engine) -> None:
        wanted = await asyncio.to_thread(self._store.models.wanted_adapters, engine.name)
        noted = await asyncio.to_thread(self._store.engines.residents, engine)
        now = asyncio.get_running_loop().time()
        for sha256, model in wanted.items():
            if sha256 in noted and noted[sha256].state is Residency.LOADED:
                continue
            failed = self._failed_at.get((engine.name, engine.run, sha256))
            if failed is None or now - failed > _RETRY_FAILED_AFTER:
                with contextlib.suppress(EngineError):  # noted in the store; tried again later
                    await self._ensure_loaded(engine, model)
        for sha256 in noted.keys() - wanted.keys():
            await self._ensure_unloaded(engine, sha256)

    async def _ensure_loaded(self, engine: Engine, model: TunedModel) -> None:
        key = (engine.name, model.sha256)
        async with self._locks[key]:
            noted = await asyncio.to_thread(self._store.engines.residents, engine)
            if model.sha256 in noted and noted[model.sha256].state is Residency.LOADED:
                return
            await self._note(engine, model.sha256, Residency.LOADING)
            try:
                if (engine.info or {}).get("fingerprint") != model.base_fingerprint:
                    raise EngineError(f"it was trained on another model that was named {model.base} then")
                folder = self._data.artifact(model.sha256)
                await asyncio.to_thread(_check_artifact, folder, model.sha256)
                await self._client(engine).load(model.sha256, folder)
            except EngineError as error:
                self._failed_at[(engine.name, engine.run, model.sha256)] = asyncio.get_running_loop().time()
                await self._note(engine, model.sha256, Residency.FAILED, str(error))
                log.error("engine %s could not load %s: %s", engine.name, model.name, error)
                raise
            await self._note(engine, model.sha256, Residency.LOADED)
            log.info("engine %s loaded %s", engine.name, model.name)

    async def _ensure_unloaded(self, engine: Engine, sha256: str) -> None:
        """First the gateway stops sending it requests, then the engine lets go."""
        async with self._locks[(engine.name, sha256)]:
            wanted = await asyncio.to_thread(self._store.models.wanted_adapters, engine.name)
            if sha256 in wanted:
                return  # wanted again meanwhile
            await self._note(engine, sha256, None)
            await self._client(engine).unload(sha256)
            log.info("engine %s unloaded %s", engine.name, sha256)

    async def _ready_engine(self, name: str) -> Engine:
        engine = await asyncio.to_thread(self._store.engines.get, name)
        if engine is None:
            raise EngineError(f"no engine serves {name}")
        if engine.state is not EngineState.READY:
            why = f": {engine.reason}" if engine.reason else ""
            raise EngineError(f"the engine of {name} is not ready ({engine.state.value}{why})")
        return engine

    async def _note(
        self, engine: Engine, sha256: str, state: Residency | None, error: str | None = None
    ) -> None:
        await asyncio.to_thread(self._store.engines.set_residency, engine, sha256, state, error)

    def _client(self, engine: Engine) -> EngineClient:
        assert engine.socket is not None, "a ready engine has a socket"
        client = self._clients.get(engine.socket)
        if client is None:
            client = self._clients[engine.socket] = EngineClient(engine.socket)
        return client


def _check_artifact(folder: Path, sha256: str) -> None:
    """The files are what the registry says they are: a torn or changed adapter never reaches vLLM."""
    try:
        found = adapter_sha256(folder)
    except (OSError, ValueError) as error:
        raise EngineError(f"the adapter's files cannot be read: {error}") from error
    if found != sha256:
        raise EngineError(f"the adapter's files have changed: their hash is {found}")
