"""Creates deployments: checks whether the model can be deployed, and places its engine on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import psutil

from tunewright.api.http.context import ServiceContext
from tunewright.engine.command import EngineOptions
from tunewright.engine.placement import needed_on_cpu, options_of_bases, place
from tunewright.errors import InvalidRequest, NotFound, quoted
from tunewright.registry.content import folder_size
from tunewright.store.deployments import Deployed, already_served
from tunewright.store.records import Deployment, TunedModel
from tunewright.store.states import EngineState, ModelKind, ModelMethod, ModelState


def deploy(context: ServiceContext, name: str, asked: Mapping[str, Any]) -> Deployment:
    """Create a deployment, or return the one that the same request created before.

    `asked` has the fields of `EngineOptions` that the request sets. Raises InvalidRequest, NotFound and
    EngineUnavailable.
    """
    settings = context.settings
    if name in [base.name for base in context.bases()]:
        raise already_served(name)
    tuned = context.store.models.get(name)
    if tuned is not None:
        _refuse_undeployable(tuned)
    model = tuned.name if tuned else name
    weights = tuned.bytes if tuned else _size_of_deployable(context, name)

    def beside(deployed: Sequence[Deployed]) -> dict[str, Any]:
        others = options_of_bases(settings, context.devices())
        others |= {one.model: EngineOptions(**one.options) for one, _ in deployed}
        coming = sum(
            needed_on_cpu(EngineOptions(**one.options))
            for one, engine in deployed
            if engine is None or engine.state not in (EngineState.READY, EngineState.FAILED)
        )
        free = psutil.virtual_memory().available - coming
        placed = place(
            settings.serving, context.devices(), model, asked, others, weights=weights, free_memory=free
        )
        return asdict(placed)

    return context.store.deployments.create(model, asked, beside, sha256=tuned.sha256 if tuned else None)


def deployed(context: ServiceContext, id_or_model: str) -> Deployed:
    """The deployment with this id, or of this model. Raises NotFound."""
    found = context.store.deployments.get(id_or_model)
    if found is None:
        raise NotFound(
            f"No such deployment: {quoted(id_or_model)}.", param="deployment", code="deployment_not_found"
        )
    return found


def trainable_deployments(context: ServiceContext) -> dict[str, Deployment]:
    """The deployments that are not being taken down, by the names of their models."""
    return {one.model: one for one, _ in context.store.deployments.all() if not one.is_draining}


def _refuse_undeployable(model: TunedModel) -> None:
    if model.kind is ModelKind.ADAPTER:
        raise InvalidRequest(
            f"{model.name} is an adapter: it is served on its base, {model.base}, without a deployment of its own "
            f"(POST /v1/adapters/{model.id}/load loads it). A merged or quantized export of it can be deployed.",
            param="model",
            code="not_deployable",
        )
    if model.method is ModelMethod.REWARD:
        raise InvalidRequest(
            f"{model.name} is a reward model: it gives answers scores, which engines here do not serve. "
            f"GET /v1/models/{model.name}/download has it for transformers.",
            param="model",
            code="not_deployable",
        )
    if model.state is not ModelState.READY:
        raise InvalidRequest(
            f"{model.name} is {model.state}, and cannot be deployed.", param="model", code="model_not_ready"
        )


def _size_of_deployable(context: ServiceContext, name: str) -> int | None:
    """The size of the model's files in bytes; None where they are not fetched from the hub yet."""
    deployables = context.deployables()
    for base in deployables:
        if base.name == name:
            return folder_size(base.path) if base.path is not None and base.path.is_dir() else None
    if context.store.aliases.get(name) is not None:
        raise InvalidRequest(f"{name} is an alias: name a model.", param="model")
    known = ", ".join(base.name for base in deployables)
    also = f", and {known} (--deployable)" if known else ""
    raise NotFound(
        f"No such model: {quoted(name)}. Full models that GET /v1/models lists can be deployed{also}.",
        param="model",
        code="model_not_found",
    )
