"""Models and adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from pydantic import ConfigDict, Field

from tunewright.api.adapters.parity import ParityObject
from tunewright.api.adapters.schemas import LineageObject
from tunewright.api.aliases.schemas import TargetObject
from tunewright.registry.aliases import Alias
from tunewright.store.records import Engine, ModelWithEngine, ResidencyRow, TunedModel
from tunewright.store.states import Desired, EngineState, ModelKind, ModelState, Residency, Source
from tunewright.wire import Wire

AdapterState = Literal[
    "loaded",
    "loading",
    "draining",
    "unloaded",
    "failed",
    "checking",
    "unchecked",
    "quarantined",
    "merge_only",
]


class ModelObject(Wire):
    """OpenAI's model object, with Tunewright's own fields."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "tunewright"
    kind: Literal["base", "adapter", "full", "alias"]
    base: str | None = Field(description="The base it was tuned from.")
    state: str = Field(
        description="ready, or why a generation would fail: starting, backoff, failed, draining, unloaded, loading, "
        "...; stored: a full model that is not deployed"
    )
    max_model_len: int | None = Field(None, description="Longest prompt and answer together, in tokens.")
    max_loras: int | None = Field(
        None, description="For a base that has started: adapters that its engine mixes in one batch."
    )
    job_id: str | None = None
    adapter_id: str | None = None
    method: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    targets: list[TargetObject] | None = Field(None, description="For an alias: the models that answer.")
    model_config = ConfigDict(protected_namespaces=())

    @classmethod
    def of_engine(cls, engine: Engine) -> ModelObject:
        return cls(
            id=engine.name,
            created=int(engine.started_at or 0),
            kind="base",
            base=None,
            state=engine.state.value,
            max_model_len=engine.info.max_model_len if engine.info else None,
            max_loras=engine.info.max_loras if engine.info else None,
        )

    @classmethod
    def of_alias(cls, alias: Alias, models: Mapping[str, ModelObject]) -> ModelObject:
        """`models` has the existing ones of its targets, by name. The alias is ready when all of its targets are."""
        targets = [models.get(target.model) for target in alias.targets]
        states = [model.state if model else "base_not_served" for model in targets]
        lengths = [model.max_model_len for model in targets if model and model.max_model_len]
        return cls(
            id=alias.name,
            created=int(alias.created_at),
            owned_by="alias",
            kind="alias",
            base=None,
            state=next((state for state in states if state != "ready"), "ready"),
            max_model_len=min(lengths, default=None),
            targets=[TargetObject(model=target.model, weight=target.weight) for target in alias.targets],
        )

    @classmethod
    def of(cls, listed: ModelWithEngine) -> ModelObject:
        model, engine = listed.model, listed.engine
        return cls(
            id=model.name,
            created=int(model.created_at),
            kind="adapter" if model.kind is ModelKind.ADAPTER else "full",
            base=model.base,
            state=model_state(model, engine, listed.held),
            max_model_len=engine.info.max_model_len if engine and engine.info else None,
            job_id=model.job_id,
            adapter_id=model.id if model.kind is ModelKind.ADAPTER else None,
            method=model.method,
            sha256=model.sha256,
            bytes=model.bytes,
        )


class AdapterObject(Wire):
    """A LoRA adapter in the registry, with its state in the engine."""

    id: str
    object: Literal["adapter"] = "adapter"
    created_at: int
    model: str = Field(description="The name to use in requests.")
    base: str
    job_id: str | None
    checkpoint_step: int | None
    method: str
    rank: int
    alpha: float
    target_modules: list[str]
    bytes: int
    sha256: str = Field(description="Hash of its weights and config; also its name inside vLLM.")
    source: Source = Field(description="Where it came from.")
    lineage: LineageObject
    desired: Literal["loaded", "unloaded"]
    pinned: bool = Field(description="It is never evicted for another.")
    state: AdapterState
    error: str | None
    parity: ParityObject | None = Field(
        description="Whether it has the same effect in the engine as in peft."
    )

    @classmethod
    def of(cls, listed: ModelWithEngine) -> AdapterObject:
        model, held = listed.model, listed.held
        return cls(
            id=model.id,
            created_at=int(model.created_at),
            model=model.name,
            base=model.base,
            job_id=model.job_id,
            checkpoint_step=model.checkpoint_step,
            method=model.method,
            rank=model.rank or 0,
            alpha=model.alpha or 0.0,
            target_modules=model.target_modules or [],
            bytes=model.bytes,
            sha256=model.sha256,
            source=model.source,
            lineage=LineageObject.of(model),
            pinned=model.pinned,
            desired=model.desired.value,
            state=cast(AdapterState, listed.state),
            error=held.error if held else None,
            parity=ParityObject.of(model.parity),
        )


def model_state(model: TunedModel, engine: Engine | None, held: ResidencyRow | None) -> str:
    """The model's state: `ready`, or the reason why a generation would fail."""
    if model.kind is not ModelKind.ADAPTER:
        return engine.state.value if engine else "stored"
    if model.state is not ModelState.READY:
        return model.shown_state
    if engine is None:
        return "base_not_served"
    if engine.state is not EngineState.READY:
        return engine.state.value
    if held is not None:
        return "ready" if held.state is Residency.LOADED else held.state.value
    return "loading" if model.desired is Desired.LOADED else "unloaded"
