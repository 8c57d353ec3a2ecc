"""What an adapter from which training continues fixes of the options."""

from __future__ import annotations

from typing import Any

from tunewright.plan.methods import METHODS
from tunewright.plan.options import TuningOptions
from tunewright.registry.artifacts import ArtifactStore
from tunewright.registry.content import adapter_config
from tunewright.store.records import TunedModel
from tunewright.store.states import ModelKind


def options_of(artifacts: ArtifactStore, parent: TunedModel) -> dict[str, Any]:
    """Rank, alpha, modules and the like of an adapter. Raises FileNotFoundError where it was deleted,
    ArtifactsUnavailable and StorageFull."""
    config = adapter_config(artifacts.fetch(parent.sha256))
    return {
        "rank": parent.rank,
        "alpha": parent.alpha,
        "target_modules": parent.target_modules,
        "dropout": config["lora_dropout"],
        "use_rslora": config.get("use_rslora", False),
        "use_dora": config.get("use_dora", False),
    }


def fixed_by(
    artifacts: ArtifactStore, parent: TunedModel, tuning: TuningOptions, method: str
) -> TuningOptions:
    """The options of a job that goes on from `parent`."""
    if parent.kind is ModelKind.FULL:
        return tuning
    fixed = options_of(artifacts, parent)
    if METHODS[method].has_reference or METHODS[method].generates:
        fixed["dropout"] = 0.0  # with it the model would differ from its reference at random
    return tuning.model_copy(update=fixed)
