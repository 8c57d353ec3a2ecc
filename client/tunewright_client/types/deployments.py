"""Deployments. Times are Unix seconds."""

from typing import Any

from pydantic import Field

from .base import Wire


class HeldAdapter(Wire):
    """An adapter that is loaded in the engine of a deployment: the name of its model and its id."""

    model: str
    id: str = ""
    state: str = ""


class DeploymentRecord(Wire):
    """A model that is served beside the bases, by its own engine.

    - state: starting, ready, backoff (the engine ended and will be started again), failed (it will be started again
      only on request) or draining
    - reason: why it is not ready: the last error of vLLM
    - engine: the options of the request
    - options: the resulting options of the engine
    - memory_bytes, device_memory_bytes: the memory that its processes use on the machine and on the GPUs
    - adapters: the adapters that its engine has loaded
    - log_tail: the last lines of vLLM's log; None in lists
    """

    id: str
    object: str = "deployment"
    model: str = ""
    state: str = ""
    reason: str | None = None
    device: str = ""
    engine: dict[str, Any] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    max_model_len: int | None = None
    created_at: int = 0
    started_at: int | None = None
    ready_at: int | None = None
    memory_bytes: int | None = None
    device_memory_bytes: int | None = None
    adapters: list[HeldAdapter] = Field(default_factory=list[HeldAdapter])
    log_tail: list[str] | None = None
