"""Python SDK of Tunewright: fine-tune language models on your own machines and use the results.

`Tunewright` blocks, `AsyncTunewright` is for asyncio; both have files, jobs, adapters, models,
aliases, deployments, chat and completions. What the server sends is in `tunewright_client.types`, of
which the common ones are here too.
"""

from ._async.client import AsyncTunewright
from ._async.deployments import AsyncDeployment
from ._async.driver import AsyncStream
from ._async.jobs import AsyncJob
from ._async.pages import AsyncPage, AsyncPager
from ._errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    DeploymentFailedError,
    InvalidResponseError,
    JobCancelledError,
    JobError,
    JobFailedError,
    NotFoundError,
    PayloadTooLargeError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    ServiceUnavailableError,
    StreamInterruptedError,
    TunewrightError,
    UnprocessableEntityError,
    WaitTimeoutError,
)
from ._sync.client import Tunewright
from ._sync.deployments import Deployment
from ._sync.driver import Stream
from ._sync.jobs import Job
from ._sync.pages import Page
from ._version import __version__
from .types import (
    Adapter,
    Alias,
    AliasGuard,
    AliasShadow,
    AliasTarget,
    AliasVersion,
    ChatCompletion,
    ChatCompletionChunk,
    Checkpoint,
    Completion,
    CompletionChunk,
    Deleted,
    File,
    JobEvent,
    JobStatus,
    Metrics,
    Model,
    Ready,
    ShadowAnswer,
    Tuning,
)

__all__ = [
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "Adapter",
    "Alias",
    "AliasGuard",
    "AliasShadow",
    "AliasTarget",
    "AliasVersion",
    "AsyncDeployment",
    "AsyncJob",
    "AsyncPage",
    "AsyncPager",
    "AsyncStream",
    "AsyncTunewright",
    "AuthenticationError",
    "BadRequestError",
    "ChatCompletion",
    "ChatCompletionChunk",
    "Checkpoint",
    "Completion",
    "CompletionChunk",
    "ConflictError",
    "Deleted",
    "Deployment",
    "DeploymentFailedError",
    "File",
    "InvalidResponseError",
    "Job",
    "JobCancelledError",
    "JobError",
    "JobEvent",
    "JobFailedError",
    "JobStatus",
    "Metrics",
    "Model",
    "NotFoundError",
    "Page",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "RateLimitError",
    "Ready",
    "ServerError",
    "ServiceUnavailableError",
    "ShadowAnswer",
    "Stream",
    "StreamInterruptedError",
    "Tunewright",
    "TunewrightError",
    "Tuning",
    "UnprocessableEntityError",
    "WaitTimeoutError",
    "__version__",
]
