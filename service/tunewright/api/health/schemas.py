"""Liveness and readiness."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from tunewright.wire import Wire


class Health(Wire):
    status: Literal["ok"] = "ok"
    version: str


class Component(Wire):
    ready: bool
    required: bool = Field(
        True,
        description="False for deployments and the bucket of artifacts: the service is ready without them.",
    )
    state: str
    reason: str | None = None
    model: str | None = None
    model_config = ConfigDict(protected_namespaces=())


class Ready(Wire):
    """`ready` is true when all required components are ready."""

    ready: bool
    components: dict[str, Component]
