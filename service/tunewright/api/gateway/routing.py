"""Resolves a model's name to the engine that answers: aliases, limits, leases, loading on demand."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright import tracing
from tunewright.api.gateway.lookups import Lookups, names_of
from tunewright.api.gateway.turns import NOBODY, Caller, Line
from tunewright.engine.leases import ENGINE, Leases
from tunewright.errors import EngineUnavailable, InvalidRequest, NotFound, quoted
from tunewright.registry.aliases import Alias, pick
from tunewright.store.policies import Policy
from tunewright.store.records import Engine, TunedModel
from tunewright.store.states import Desired, EngineState, ModelKind, ModelState, Residency
from tunewright.store.store import Store

_WAIT_FOR_LOADING = 30.0
_POLL_INTERVAL = 0.05
_MOST_KNOWN = 10_000
_MOST_SEQUENCES = 256
"""Sequences that an engine runs at once which an earlier version of the service has started."""

LeaseKeys = tuple[tuple[str, str], ...]
"""The leases that a request needs, each as (engine, the adapter's hash or `ENGINE`)."""
Load = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Makes the engine worker carry out `{"op": "load", "model": name}`; the answer has an `error` where it could not."""


@dataclass(frozen=True)
class Target:
    """The engine and the model to which a request is sent."""

    socket: str
    internal_name: str
    public_name: str
    """The model that answers: a base, a deployed model, or one version of an adapter; never an alias. Of a job's policy
    its base."""
    chat_template: str | None
    """The adapter's own."""
    base_has_template: bool = True
    vocabulary: int | None = None
    """Number of tokens, where the base's config states it."""
    context: int | None = None
    """Tokens that a request and its answer may have together."""
    base: str = ""
    """The engine's name for its base."""
    line: Line | None = None
    """Where the requests to the engine take turns."""
    control_tokens: tuple[str, ...] = ()
    """Those of the base's tokenizer; `all_control_tokens` are these and those of the base's chat template."""
    all_control_tokens: tuple[str, ...] = ()
    content: str = ""
    """The hash of the adapter's weights, else the fingerprint of the engine's model."""


class Router:
    """Resolves the names in requests to targets. Used from one event loop only.

    `store` should have connections of its own: others may be held by writers, which wait for each other.
    `leases` is the folder of leases, which the engine worker reads. `max_requests` limits the generations in flight
    for each engine.
    """

    def __init__(
        self,
        store: Store,
        leases: Path,
        load: Load,
        *,
        max_requests: int = 1024,
        load_on_demand: bool = True,
    ) -> None:
        self._lookups = Lookups(names_of(store), store.database.changes())
        self._leases = Leases(leases)
        self._load = load
        self._max_requests = max_requests
        self._load_on_demand = load_on_demand
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._known: dict[str, LeaseKeys] = {}
        """The leases that requests to a model need, by its name. Bases need none, since they are never removed."""
        self._lines: dict[str, Line] = {}

    @property
    def in_flight(self) -> Counter[str]:
        """Number of generations by engine name, including those that wait for their adapter or their turn."""
        return Counter({name: line.in_flight for name, line in self._lines.items()})

    @property
    def lines(self) -> Mapping[str, Line]:
        """The generations in flight, by engine name."""
        return self._lines

    def close(self) -> None:
        self._lookups.close()

    async def choose(self, name: str, sticky: str | None, project: str) -> tuple[str, Alias | None]:
        """The model that answers a request of the project to `name`, and the alias where `name` is one.

        `sticky`: requests with the same key get the same target of an alias. Raises NotFound where `name` is nothing.
        """
        found = await self._lookups.find((project, name))
        if found.alias is None and found.model is None and found.engine is None:
            raise _no_such_model(name)
        alias = found.alias
        return (pick(alias, sticky, random.random()), alias) if alias else (name, None)

    async def find(
        self, name: str, held: ExitStack, caller: Caller = NOBODY, *, project: str | None
    ) -> Target:
        """The target for a request of `caller` to model `name` of the project. Loads an adapter that is not loaded.

        `project`: None where the service has found the model itself, for a project that has it.
        Until `held` is closed, the request counts as in flight, and its adapter stays loaded and its engine deployed.
        Raises NotFound, InvalidRequest, EngineUnavailable and TooManyRequests.
        """
        deadline = asyncio.get_running_loop().time() + _WAIT_FOR_LOADING
        entered = known_before = False
        while True:
            with ExitStack() as lease:
                leased = self._lease(name, lease)
                found = await self._lookups.find((project, name))
                model, engine, residency = found.model, found.engine, found.held
                if engine is not None and engine.state is EngineState.DRAINING:
                    self._known.pop(name, None)  # else the leases of refused requests would keep it alive
                engine = self._servable(name, model, engine)
                if not entered:
                    self._enter(engine, caller, held)
                    entered = True
                adapter = model if model is not None and model.kind is ModelKind.ADAPTER else None
                needed = self._remember(name, engine, adapter)
                is_loaded = adapter is None or (residency is not None and residency.state is Residency.LOADED)
                is_checked = adapter is None or adapter.state is not ModelState.CHECKING
                if is_checked and is_loaded and leased == needed:
                    held.push(lease.pop_all())
                    return _target(engine, model, self._lines[engine.name])
            if is_loaded and not known_before:
                known_before = True  # its leases are known now and can be taken
                continue
            if residency is not None and residency.state is Residency.FAILED:
                raise EngineUnavailable(f"{name} could not be loaded: {residency.error}", retry_after=30)
            if asyncio.get_running_loop().time() > deadline:
                what = "loaded" if is_checked else "checked (GET /v1/adapters says how that ends)"
                raise EngineUnavailable(f"{name} is still being {what}: try again.")
            if adapter is None or (is_loaded and not is_checked):
                await asyncio.sleep(_POLL_INTERVAL)
            else:
                with tracing.span("adapter load", {"gen_ai.response.model": adapter.name}):
                    await self._ensure_loaded(adapter)

    def _lease(self, name: str, lease: ExitStack) -> LeaseKeys:
        """Take the leases known for `name`, and return them; none where one of them cannot be taken.

        Called before the store is read, so that what the store says stays true while the request runs.
        """
        known = self._known.get(name, ())
        for key in known:
            if not self._leases.take(*key):
                lease.close()
                return ()
            lease.callback(self._leases.give_back, *key)
        return known

    def _remember(self, name: str, engine: Engine, adapter: TunedModel | None) -> LeaseKeys:
        """Record and return the leases that a request to `name` needs, so that the next one can take them first.

        The weights of an adapter never change, but its name may be deleted and used again.
        """
        needed: LeaseKeys = ((engine.name, ENGINE),) if engine.is_deployed else ()
        if adapter is not None:
            needed = (*needed, (engine.name, adapter.sha256))
        self._known.pop(name, None)
        if needed:
            self._known[name] = needed
        if len(self._known) > _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        return needed

    async def _ensure_loaded(self, model: TunedModel) -> None:
        """Wait for the load of `model`; concurrent requests share one load."""
        if model.desired is not Desired.LOADED and not self._load_on_demand:
            raise InvalidRequest(
                f"{model.name} is not loaded: load it with POST /v1/adapters/{model.id}/load.",
                param="model",
                code="model_not_loaded",
            )
        task = self._loading.get(model.name)
        if task is None:
            task = self._loading[model.name] = asyncio.create_task(self._ask_to_load(model.name))
            task.add_done_callback(lambda _: self._loading.pop(model.name, None))
        done, _ = await asyncio.wait({task}, timeout=_WAIT_FOR_LOADING)
        if done:
            task.result()
            await asyncio.sleep(_POLL_INTERVAL if model.desired is Desired.LOADED else 0)

    async def _ask_to_load(self, name: str) -> None:
        answer = await self._load({"op": "load", "model": name})
        if "error" in answer:
            raise EngineUnavailable(
                f"{name} could not be loaded: {answer['error']}", code="load_failed", retry_after=5
            )

    def _servable(self, name: str, model: TunedModel | None, engine: Engine | None) -> Engine:
        """The engine that can answer for this model now. Raises NotFound, InvalidRequest and EngineUnavailable."""
        if model is None and engine is None:
            raise _no_such_model(name)
        if model is not None and model.kind is ModelKind.FULL and engine is None:
            raise not_deployed(name)
        if model is not None:
            refuse_unservable(model)
        if engine is None:
            raise InvalidRequest(f"The base of {name} is not among those served here.", param="model")
        if engine.state is EngineState.DRAINING:
            raise NotFound(f"{engine.name} is being taken down.", param="model", code="model_not_found")
        if engine.state is EngineState.FAILED:
            raise InvalidRequest(
                f"{engine.name} could not be started: {engine.reason}. "
                f"POST /v1/deployments/{engine.name}/restart tries it again.",
                param="model",
                code="deployment_failed",
            )
        if engine.state is not EngineState.READY or engine.socket is None or engine.info is None:
            why = f": {engine.reason}" if engine.reason else ""
            raise EngineUnavailable(
                f"The engine of {engine.name} is not ready ({engine.state.value}{why}): try again later."
            )
        return engine

    def _enter(self, engine: Engine, caller: Caller, held: ExitStack) -> None:
        assert engine.info is not None, "`_servable` checks this first"
        places = engine.info.max_num_seqs or _MOST_SEQUENCES
        line = self._lines.get(engine.name)
        if line is None:
            line = self._lines[engine.name] = Line(engine.name, self._max_requests, places)
        line.places = places
        line.enter(caller)
        held.callback(line.leave, caller)


def _no_such_model(name: str) -> NotFound:
    return NotFound(f"No such model: {quoted(name)}.", param="model", code="model_not_found")


def not_deployed(name: str) -> InvalidRequest:
    """The error for a full model that has no deployment."""
    return InvalidRequest(
        f"{name} is a full model, and not served now: deploy it with POST /v1/deployments, or download it with "
        f"GET /v1/models/{name}/download.",
        param="model",
        code="model_not_served",
    )


def refuse_unservable(model: TunedModel) -> None:
    """Raises InvalidRequest where the model failed its parity check, or vLLM cannot serve adapters of its type."""
    if model.state is ModelState.MERGE_ONLY:
        raise InvalidRequest(
            f"{model.name} is an adapter that vLLM does not serve (DoRA, or whole modules beside the LoRA weights): "
            "merge it into its base with POST /v1/exports, and deploy the result.",
            param="model",
            code="model_merge_only",
        )
    if model.state is ModelState.QUARANTINED:
        raise InvalidRequest(
            f"{model.name} is quarantined: it was not seen to do in the engine what it was trained to do. "
            f"GET /v1/adapters/{model.id} has the numbers, and POST /v1/adapters/{model.id}/load?force=true serves it "
            "all the same.",
            param="model",
            code="model_quarantined",
        )


def _target(engine: Engine, model: TunedModel | None, line: Line) -> Target:
    assert engine.socket is not None and engine.info is not None, "`_servable` checks this first"
    adapter = model if model is not None and model.kind is ModelKind.ADAPTER else None
    return Target(
        engine.socket,
        adapter.sha256 if adapter else engine.info.internal_name,
        adapter.name if adapter and not isinstance(adapter, Policy) else engine.name,
        adapter.chat_template if adapter else None,
        engine.info.has_chat_template,
        engine.info.vocab_size,
        engine.info.max_model_len,
        engine.info.internal_name,
        line,
        engine.info.control_tokens,
        engine.info.all_control_tokens,
        adapter.sha256 if adapter else engine.info.fingerprint,
    )
