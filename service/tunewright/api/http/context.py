"""The parts of the service that routes use, as a FastAPI dependency."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request

from tunewright.api.files.checks import FileChecks
from tunewright.api.files.kept import KeptReports
from tunewright.api.http.threads import Threads
from tunewright.api.jobs.feeds import Feeds
from tunewright.api.telemetry.exporter import Exporter
from tunewright.config import Settings
from tunewright.errors import EngineUnavailable, NotFound
from tunewright.registry.workspace import Workspace
from tunewright.store.store import Store
from tunewright.webhooks.sending import Sender

Control = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Makes the engine worker carry out `{"op": "load" | "unload", "model": name}`."""

Ask = Callable[[dict[str, Any]], Awaitable[tuple[int, bytes]]]
"""Sends a chat completion to the model or alias that it names: the status and bytes of the answer. Raises as `ask`."""


async def _ask_nobody(_: dict[str, Any]) -> tuple[int, bytes]:
    raise EngineUnavailable("No engine can be asked here.")


@dataclass(frozen=True)
class ServiceContext:
    """The settings, the store and the workspace, and access to the engine worker."""

    settings: Settings
    store: Store
    workspace: Workspace
    control: Control
    devices: Callable[[], Sequence[str]] = lambda: ("cpu",)
    """Returns the devices on which engines may run."""
    feeds: Feeds = field(default_factory=Feeds)
    """The events of jobs that are listened to."""
    slow: Threads = field(default_factory=lambda: Threads("uploads and registrations", 16, most=64))
    """For what takes long, since files are stored, fetched or checked."""
    measuring: Threads = field(
        default_factory=lambda: Threads("plans and reports", 2, most=16, code="too_many_reports")
    )
    """For what tokenizes files: each takes all cores."""
    reports: KeptReports = field(default_factory=KeptReports)
    checks: FileChecks = field(default_factory=FileChecks)
    """The rows of uploaded files are checked."""
    ask: Ask = _ask_nobody
    exporter: Exporter | None = None
    """None where metrics are off."""
    grading: Threads = field(
        default_factory=lambda: Threads("runs of graders", 2, most=32, code="too_many_graders")
    )
    """For graders, which take half of the processes in which strangers' data is read."""
    webhook_sender: Callable[[], Sender] = lambda: Sender((), 1.0)
    """Sends tests to endpoints of webhooks; the first call blocks, since it reads certificates."""
    webhook_tests: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(4))
    """Tests that run at the same time."""


async def _context(request: Request) -> ServiceContext:
    if "\0" in request.scope["path"]:  # PostgreSQL refuses it, even in a comparison
        raise NotFound("Nothing here has the character U+0000 in its name.")
    context: ServiceContext = request.app.state.context
    return context


Context = Annotated[ServiceContext, Depends(_context)]
