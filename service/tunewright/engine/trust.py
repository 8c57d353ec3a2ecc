"""Decides which models' own Python code may run, in an engine or a job's process (`--trust-remote-code`)."""

from __future__ import annotations

from tunewright.config import ModelOptions
from tunewright.store.records import TunedModel
from tunewright.store.states import ModelKind
from tunewright.store.store import Store


def trusts_code(models: ModelOptions, store: Store, name: str) -> bool:
    """Whether the Python code of a base or a deployed model may run. A model that was made here has its base's code."""
    tuned = full_model(store, name)
    return (tuned.base if tuned else name) in models.trust_remote_code


def full_model(store: Store, name: str) -> TunedModel | None:
    """The full model of this name, if it was made here."""
    tuned = store.models.get(name)
    return tuned if tuned is not None and tuned.name == name and tuned.kind is ModelKind.FULL else None
