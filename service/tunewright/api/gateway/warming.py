"""Loads the models of an alias before requests are sent to them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tunewright.api.http.context import ServiceContext
from tunewright.errors import EngineUnavailable
from tunewright.store.states import Desired, EngineState, ModelKind, Residency


async def warm(context: ServiceContext, alias: str, models: Sequence[str]) -> None:
    """Return when every model can answer at once. Raises EngineUnavailable with the reason where one cannot.

    Where an adapter cannot be loaded whose desired state was unloaded, it is set back to unloaded.
    """
    for name in models:
        model, engine, held = await asyncio.to_thread(context.store.models.resolve, name)
        if model is None or model.kind is not ModelKind.ADAPTER:
            if engine is None or engine.state is not EngineState.READY:
                state = engine.state.value if engine else "gone"
                why = f": {engine.reason}" if engine and engine.reason else ""
                raise _unchanged(alias, f"the engine of {name} is not ready ({state}{why})")
            continue
        is_loaded = held is not None and held.state is Residency.LOADED and model.desired is Desired.LOADED
        if is_loaded and engine is not None and engine.state is EngineState.READY:
            continue
        answer = await context.control({"op": "load", "model": name})
        if "error" in answer:
            if model.desired is not Desired.LOADED:
                await context.control({"op": "unload", "model": name})
            raise _unchanged(alias, f"{name} could not be loaded: {answer['error']}")


def _unchanged(alias: str, why: str) -> EngineUnavailable:
    return EngineUnavailable(
        f"{alias} was left as it is, since {why}. `wait` false changes it nevertheless.",
        code="load_failed",
        retry_after=5,
    )
