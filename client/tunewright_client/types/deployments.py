"""Deployments, as the server sends them. Times are Unix seconds."""

from typing import Any

from pydantic import Field

from .base import Wire


class HeldAdapter(Wire):
    """An adapter that a deployment's engine holds, by its model's name and its id."""

    model: str
    id: str = ""
    state: str = ""


class DeploymentRecord(Wire):
    """A model that is served beside the bases, by an engine of its own.

    - state: starting, ready, backoff (it ended, and is started again), failed (it is not, until asked for),
      draining
    - reason: why it is not ready: vLLM's own last error
    - engine: what was asked for; options: what that became
    - memory_bytes, device_memory_bytes: what its processes take of the machine's memory and of the GPUs'
    - adapters: what its engine holds
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
    adapters: list[HeldAdapter] = Field(default_factory=list)
    log_tail: list[str] | None = None
