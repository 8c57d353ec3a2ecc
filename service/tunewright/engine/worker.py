"""EngineAPI, the LitServe worker process, which loads and unloads adapters behind LitServe's queue.

It imports no torch. When it is killed, it is started again and continues from the store; generations with loaded
adapters are not affected. Requests are operations: `{"id": unique, "op": "load" | "unload", "model": name}`; answers
are `{"state": ...}` or `{"error": message}`. A repeat with the same id is not carried out again.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import Any

import litserve as ls
from setproctitle import setproctitle

from tunewright.config import settings_in_child
from tunewright.errors import StorageUnavailable
from tunewright.logs import configure_logging
from tunewright.registry.workspace import Workspace
from tunewright.store.records import TunedModel
from tunewright.store.store import Store
from tunewright.supervisor.heartbeat import PERIOD, beat

log = logging.getLogger("tunewright.engine")
_INTERVAL, _AT_LEAST = 0.5, 5.0
"""Seconds between two rounds over all engines; and where nobody has changed the database since the last one, which can
be seen with SQLite."""
_REMEMBERED = 10_000
"""Operations whose ids are remembered, so that repeats are recognized."""


class EngineAPI(ls.LitAPI):  # type: ignore[misc]
    """The worker's code. It is pickled into the worker, so everything is opened in `setup`, and modules that the api
    process does not need are imported there."""

    def __init__(self) -> None:
        super().__init__(enable_async=True)

    async def authorize(self) -> None:
        """LitServe's dependency of the generation routes. `AccessMiddleware` checks the key.

        Its default does as little in a plain function, for which FastAPI needs one of the threads that all blocking
        routes share: generations would wait for them.
        """

    def setup(self, device: str) -> None:
        from tunewright.engine.residency import ResidencyManager

        settings = settings_in_child()
        setproctitle("tunewright: engine worker")
        configure_logging(settings.processes.log_level, settings.telemetry.log_format)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor says when to stop
        self._store = Store.open(settings.storage.resolved_database_url)
        workspace = Workspace.of(settings.storage)
        self._heartbeat = workspace.heartbeat("worker")
        self._manager = ResidencyManager(self._store, workspace)
        self._answers: OrderedDict[str, Future[dict[str, Any]]] = OrderedDict()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, daemon=True, name="residency").start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.create_task(self._keep_reconciled())
        self._loop.create_task(self._keep_beating())
        self._loop.run_forever()

    async def _keep_reconciled(self) -> None:
        changes = self._store.database.changes()
        done: object = None
        due = 0.0
        while True:
            version = changes.version() if changes is not None else None
            if version is None or version != done or self._loop.time() >= due:
                try:
                    done = version if await self._manager.reconcile() else None
                except Exception:
                    log.exception("reconciling failed; trying again")
                    done = None
                due = self._loop.time() + _AT_LEAST
            await asyncio.sleep(_INTERVAL)

    async def _keep_beating(self) -> None:
        while True:
            beat(self._heartbeat)
            await asyncio.sleep(PERIOD)

    async def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return request

    async def predict(self, operation: dict[str, Any]) -> dict[str, Any]:
        answer = self._answers.get(operation["id"])
        if answer is None:
            answer = asyncio.run_coroutine_threadsafe(self._carry_out(operation), self._loop)
            self._answers[operation["id"]] = answer
            if len(self._answers) > _REMEMBERED:
                self._answers.popitem(last=False)
        return await asyncio.wrap_future(answer)

    async def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output

    async def _carry_out(self, operation: dict[str, Any]) -> dict[str, Any]:
        from tunewright.engine.http import EngineError

        name = operation["model"]
        model = await asyncio.to_thread(self._named, name)
        if model is None:
            return {"error": f"no model {name}"}
        try:
            if operation["op"] == "load":
                return await self._manager.load(model)
            return await self._manager.unload(model, operation.get("wait", 0.0))
        except (EngineError, StorageUnavailable) as error:
            return {"error": str(error)}

    def _named(self, name: str) -> TunedModel | None:
        """The job's policy or the model that the service has under this name."""
        return self._store.policies.get(name) or self._store.models.get(name)
