"""What the server sends, as frozen pydantic models that keep fields they do not know."""

from .aliases import Alias, AliasGuard, AliasShadow, AliasTarget, AliasVersion, ShadowAnswer
from .deployments import DeploymentRecord, HeldAdapter
from .generations import (
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatMessage,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionChunk,
    Usage,
)
from .jobs import (
    Checkpoint,
    JobErrorInfo,
    JobEvent,
    JobProgress,
    JobRecord,
    JobStatus,
    Metrics,
    Tuning,
)
from .resources import Adapter, Component, Deleted, File, Lineage, Model, Parity, Ready

__all__ = [
    "Adapter",
    "Alias",
    "AliasGuard",
    "AliasShadow",
    "AliasTarget",
    "AliasVersion",
    "ChatChoice",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatMessage",
    "Checkpoint",
    "ChunkChoice",
    "Completion",
    "CompletionChoice",
    "CompletionChunk",
    "Component",
    "Deleted",
    "DeploymentRecord",
    "File",
    "HeldAdapter",
    "JobErrorInfo",
    "JobEvent",
    "JobProgress",
    "JobRecord",
    "JobStatus",
    "Lineage",
    "Metrics",
    "Model",
    "Parity",
    "Ready",
    "ShadowAnswer",
    "Tuning",
    "Usage",
]
