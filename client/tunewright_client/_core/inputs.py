"""Conversions of arguments that may be given in several forms to the JSON that the API takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from ..types import (
    AliasGuard,
    AliasRequirement,
    AliasShadow,
    AliasTarget,
    CombineOptions,
    WeightedModel,
)

_WITH_BETA = ("dpo", "kto", "orpo")
Targets = str | Mapping[str, float] | Sequence[str | AliasTarget | Mapping[str, Any]]
"""The targets of an alias: a model's name, weights by name, or a list of names and objects."""
ShadowInput = str | AliasShadow | Mapping[str, Any]
GuardInput = AliasGuard | Mapping[str, Any]
RequireInput = AliasRequirement | Mapping[str, Any] | Literal[False]
"""What an alias requires; False: nothing any more."""
WeightedModels = Mapping[str, float] | Sequence[str | WeightedModel | Mapping[str, Any]]
"""The adapters of an export: weights by name, or a list of names and of objects with `model` and `weight`."""
CleaningStep = str | Mapping[str, Any]
"""A step of a cleaning: its name, or an object with its type and its options."""
Mix = Mapping[str, float] | Mapping[Path, float] | Mapping[str | Path, float]
"""Further training files with their weights: ids of files, or paths of local ones, which are uploaded."""
CombineInput = str | CombineOptions | Mapping[str, Any]


def alias_body(
    targets: Targets,
    shadow: ShadowInput | None,
    guard: GuardInput | None,
    expected_version: int | None,
    wait: bool,
    require: RequireInput | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """The body of the request that sets an alias. Without `require` what it requires stays."""
    body = {
        "targets": _weighted(targets),
        "shadow": None if shadow is None else _object(shadow),
        "guard": None if guard is None else _object(guard),
        "expected_version": expected_version,
        "force": force or None,
        "wait": wait,
    }
    given: dict[str, Any] = {name: value for name, value in body.items() if value is not None}
    if require is not None:
        given["require"] = None if require is False else _object(require)
    return given


def source_fields(
    model: str | None, models: WeightedModels | None, combine: CombineInput | None
) -> dict[str, Any]:
    """The fields of an export that say what is exported. Raises ValueError unless exactly one of `model` and `models`
    is given."""
    if (model is None) == (models is None):
        raise ValueError("give one of model and models")
    return {
        "model": model,
        "models": None if models is None else _weighted(models),
        "combine": {"method": combine} if isinstance(combine, str) else combine,
    }


def cleaning_step(step: CleaningStep) -> dict[str, Any]:
    """A step of a cleaning as an object."""
    return {"type": step} if isinstance(step, str) else dict(step)


def with_mix(data: Mapping[str, Any] | None, weights: Mapping[str, float]) -> dict[str, Any]:
    """`data` of a job with the weights of its training files by their ids."""
    return {**(data or {}), "mix": [{"file": file, "weight": weight} for file, weight in weights.items()]}


def job_body(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The body of the request that creates a job: without fields that are None, typed objects as plain ones."""
    return {
        name: value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
        for name, value in fields.items()
        if value is not None
    }


def evaluate_object(evaluate: Mapping[str, Any]) -> dict[str, Any]:
    """`evaluate` of a job as the API takes it: what may be named alone becomes a list."""
    made = dict(evaluate)
    if isinstance(made.get("suites"), str | Mapping):
        made["suites"] = [made["suites"]]
    if made.get("suites") is not None:
        made["suites"] = [{"name": one} if isinstance(one, str) else one for one in made["suites"]]
    if isinstance(made.get("at"), str):
        made["at"] = [made["at"]]
    if isinstance(made.get("metrics"), str) and made["metrics"] != "auto":
        made["metrics"] = [made["metrics"]]
    if isinstance(made.get("require"), Mapping):
        made["require"] = [made["require"]]
    if isinstance(made.get("judge"), str):
        made["judge"] = {"model": made["judge"]}
    return made


def method_object(method: str | Mapping[str, Any] | None, beta: float | str | None) -> dict[str, Any] | None:
    """OpenAI's `method` of a job. Raises ValueError for a beta without a method that has one."""
    if isinstance(method, Mapping):
        if beta is not None:
            raise ValueError('give beta within method, as method["dpo"]["hyperparameters"]["beta"]')
        return dict(method)
    if beta is None:
        return {"type": method} if method is not None else None
    if method not in _WITH_BETA:
        raise ValueError('beta is for the methods "dpo", "kto" and "orpo": give method="dpo" too')
    return {"type": method, method: {"hyperparameters": {"beta": beta}}}


def graded_method(
    grader: Mapping[str, Any], method: str | Mapping[str, Any] | None, beta: float | str | None
) -> dict[str, Any]:
    """The method "reinforcement" with a grader, as OpenAI's object. Raises ValueError beside another method."""
    if method not in (None, "reinforcement"):
        raise ValueError(
            'grader is for the method "reinforcement": leave method out, or give all of it as method'
        )
    hyperparameters = {} if beta is None else {"hyperparameters": {"beta": beta}}
    return {"type": "reinforcement", "reinforcement": {"grader": dict(grader), **hyperparameters}}


def _weighted(models: Targets | WeightedModels) -> list[dict[str, Any]]:
    """A list of objects with `model` and, where a weight was given, `weight`. The server has a default weight."""
    if isinstance(models, str):
        models = [models]
    elif isinstance(models, Mapping):
        models = [{"model": model, "weight": weight} for model, weight in models.items()]
    return [_object(model) for model in models]


def _object(value: str | BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """A model's name, a typed object or a mapping as a plain object."""
    if isinstance(value, str):
        return {"model": value}
    if isinstance(value, Mapping):
        return dict(value)
    return value.model_dump(exclude_unset=True)
