"""Models and adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from pydantic import ConfigDict, Field

from tunewright.api.adapters.parity import PARITY_EXAMPLE, ParityObject
from tunewright.api.adapters.schemas import LINEAGE_EXAMPLE, LineageObject
from tunewright.api.aliases.schemas import TargetObject
from tunewright.registry.aliases import Alias
from tunewright.store.records import Engine, Listed, ResidencyRow, TunedModel
from tunewright.store.states import Desired, EngineState, ModelState, Residency, Source
from tunewright.wire import Wire

AdapterState = Literal[
    "loaded", "loading", "draining", "unloaded", "failed", "checking", "quarantined", "merge_only"
]
_NAME = "ft:tunewright-tiny:pirate:Zk3mP0aY"
_SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


class ModelObject(Wire):
    """OpenAI's model object, and what Tunewright knows beside it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "tunewright"
    kind: Literal["base", "adapter", "full", "alias"]
    base: str | None = Field(description="The base it was tuned from.")
    state: str = Field(
        description="ready, or why generation would fail: starting, backoff, failed, draining, unloaded, loading, "
        "...; stored: a full model that is not deployed"
    )
    max_model_len: int | None = Field(None, description="Longest prompt and answer together, in tokens.")
    job_id: str | None = None
    adapter_id: str | None = None
    method: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    targets: list[TargetObject] | None = Field(
        None, description="Of an alias: the models that answer for it."
    )
    model_config = ConfigDict(
        protected_namespaces=(),
        json_schema_extra={
            "examples": [
                {
                    "id": _NAME,
                    "object": "model",
                    "created": 1795337534,
                    "owned_by": "tunewright",
                    "kind": "adapter",
                    "base": "tunewright-tiny",
                    "state": "ready",
                    "max_model_len": 1024,
                    "job_id": "ftjob-Zk3mP0aYc7vTqLw9XnB2sR8d",
                    "adapter_id": "adapter-Qw8rT2yU6iOp1aSd3fGh5jKl",
                    "method": "lora",
                    "sha256": _SHA,
                    "bytes": 1212512,
                }
            ]
        },
    )

    @classmethod
    def of_engine(cls, engine: Engine) -> ModelObject:
        return cls(
            id=engine.name,
            created=int(engine.started_at or 0),
            kind="base",
            base=None,
            state=engine.state.value,
            max_model_len=engine.info.max_model_len if engine.info else None,
        )

    @classmethod
    def of_alias(cls, alias: Alias, models: Mapping[str, ModelObject]) -> ModelObject:
        """`models`: those among its targets that there are, by name. It is as ready as the least ready of them."""
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
    def of(cls, listed: Listed) -> ModelObject:
        model, engine = listed.model, listed.engine
        return cls(
            id=model.name,
            created=int(model.created_at),
            kind="adapter" if model.kind == "adapter" else "full",
            base=model.base,
            state=model_state(model, engine, listed.held),
            max_model_len=engine.info.max_model_len if engine and engine.info else None,
            job_id=model.job_id,
            adapter_id=model.id if model.kind == "adapter" else None,
            method=model.method,
            sha256=model.sha256,
            bytes=model.bytes,
        )


class AdapterObject(Wire):
    """A LoRA adapter in the registry, and what the engine holds of it."""

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
    sha256: str = Field(description="Of its weights and config; also its name inside vLLM.")
    source: Source = Field(description="Where it came from.")
    lineage: LineageObject
    desired: Literal["loaded", "unloaded"]
    pinned: bool = Field(description="Never evicted for another.")
    state: AdapterState
    error: str | None
    parity: ParityObject | None = Field(description="Whether it does in the engine what it does in peft.")
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "adapter-Qw8rT2yU6iOp1aSd3fGh5jKl",
                    "object": "adapter",
                    "created_at": 1795337534,
                    "model": _NAME,
                    "base": "tunewright-tiny",
                    "job_id": "ftjob-Zk3mP0aYc7vTqLw9XnB2sR8d",
                    "checkpoint_step": None,
                    "method": "lora",
                    "rank": 8,
                    "alpha": 16.0,
                    "target_modules": [
                        "down_proj",
                        "gate_proj",
                        "k_proj",
                        "o_proj",
                        "q_proj",
                        "up_proj",
                        "v_proj",
                    ],
                    "bytes": 1212512,
                    "sha256": _SHA,
                    "source": "job",
                    "lineage": LINEAGE_EXAMPLE,
                    "desired": "loaded",
                    "pinned": False,
                    "state": "loaded",
                    "error": None,
                    "parity": PARITY_EXAMPLE,
                }
            ]
        }
    )

    @classmethod
    def of(cls, listed: Listed) -> AdapterObject:
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
    """ready, or the word for why not."""
    if model.kind != "adapter":
        return engine.state.value if engine else "stored"
    if model.state is not ModelState.READY:
        return model.state.value
    if engine is None:
        return "base_not_served"
    if engine.state is not EngineState.READY:
        return engine.state.value
    if held is not None:
        return "ready" if held.state is Residency.LOADED else held.state.value
    return "loading" if model.desired is Desired.LOADED else "unloaded"
