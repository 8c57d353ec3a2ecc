"""Python SDK of Tunewright: fine-tune language models on your own machines and use the results.

`Tunewright` is the blocking client, `AsyncTunewright` the one for asyncio. Both have `files`, `jobs`, `exports`,
`adapters`, `models`, `aliases`, `deployments`, `chat` and `completions`. The types of the server's answers are in
`tunewright_client.types`; the common ones are also here.
"""

from ._async.client import AsyncTunewright
from ._async.deployments import AsyncDeployment
from ._async.exports import AsyncExport
from ._async.jobs import AsyncJob
from ._async.pager import AsyncPager
from ._async.pages import AsyncPage
from ._async.streams import AsyncStream
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
from ._sync.exports import Export
from ._sync.jobs import Job
from ._sync.pages import Page
from ._sync.streams import Stream
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
    CombineOptions,
    Completion,
    CompletionChunk,
    Deleted,
    ExportGate,
    ExportQuality,
    ExportQualityRow,
    ExportReport,
    File,
    JobEvent,
    JobStatus,
    Metrics,
    Model,
    Plan,
    Ready,
    ShadowAnswer,
    Tuning,
    WeightedModel,
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
    "AsyncExport",
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
    "CombineOptions",
    "Completion",
    "CompletionChunk",
    "ConflictError",
    "Deleted",
    "Deployment",
    "DeploymentFailedError",
    "Export",
    "ExportGate",
    "ExportQuality",
    "ExportQualityRow",
    "ExportReport",
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
    "Plan",
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
    "WeightedModel",
    "__version__",
]
