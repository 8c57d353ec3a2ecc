"""The parts of the service that routes use, as a FastAPI dependency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Self

from fastapi import Depends, Request

from tunewright.api.files.checks import FileChecks
from tunewright.api.files.kept import KeptReports
from tunewright.api.gateway.rates import Rates
from tunewright.api.http.access import Need, Principal, require
from tunewright.api.http.keyring import Keyring
from tunewright.api.http.threads import Threads
from tunewright.api.http.trail import AuditTrail
from tunewright.api.jobs.feeds import Feeds
from tunewright.api.telemetry.exporter import Exporter
from tunewright.config import Base, Settings
from tunewright.errors import EngineUnavailable, NotFound
from tunewright.registry.workspace import Workspace
from tunewright.store.keys import Scope
from tunewright.store.store import Store
from tunewright.webhooks.sending import Sender

Control = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Makes the engine worker carry out `{"op": "load" | "unload", "model": name}`."""

AskByName = Callable[[dict[str, Any], str, str | None], Awaitable[tuple[int, bytes]]]
"""Sends a chat completion to the model or alias of a project that it names, as a use of a key: the status and bytes of
the answer. Raises TunewrightError."""
_MOST_CONTEXTS = 1000


async def _ask_nobody(_: dict[str, Any], __: str, ___: str | None) -> tuple[int, bytes]:
    raise EngineUnavailable("No engine can be asked here.")


@dataclass(frozen=True)
class ServiceContext:
    """The settings, the store and the workspace, and access to the engine worker.

    Routes have it as their request's project sees it (`within`): no other store can be reached from `store`.
    """

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
    ask_by_name: AskByName = _ask_nobody
    rates: Rates = field(default_factory=Rates)
    """Those of generations."""
    exporter: Exporter | None = None
    """None where metrics are off."""
    grading: Threads = field(
        default_factory=lambda: Threads("runs of graders", 2, most=32, code="too_many_graders")
    )
    """For graders, which take half of the processes in which strangers' data is read."""
    webhook_sender: Callable[[], Sender] = lambda: Sender((), 1.0)
    """Sends tests to endpoints of webhooks; the first call blocks, since it reads certificates."""
    webhook_tests: Counter[str] = field(default_factory=Counter)
    """How many tests of endpoints of webhooks run, by their projects."""
    keyring: Keyring | None = None
    """The keys that requests come with; made of the store where it is not given."""
    trail: AuditTrail | None = None
    """Writes the audit log; None: nothing is written."""
    key: str | None = None
    """The id of the key that the request came with."""
    _within: dict[tuple[str, str | None], Self] = field(default_factory=dict, init=False)
    """The contexts of the projects and keys that have sent requests lately."""

    def __post_init__(self) -> None:
        if self.keyring is None:
            object.__setattr__(self, "keyring", Keyring(self.store))

    @property
    def project(self) -> str:
        """The project of the request."""
        assert self.store.database.project is not None, "routes have the context of a project"
        return self.store.database.project

    def within(self, project: str, key: str | None = None) -> Self:
        """The same for the requests of a project and a key."""
        found = self._within.get((project, key))
        if found is None:
            found = replace(self, store=self.store.of(project), key=key)
            self._within[project, key] = found
            while len(self._within) > _MOST_CONTEXTS:
                del self._within[next(iter(self._within))]
        return found

    def bases(self) -> list[Base]:
        """Those that the project may use. Reads the database."""
        return self._usable(self.settings.models.bases)

    def deployables(self) -> list[Base]:
        """Those that the project may use. Reads the database."""
        return self._usable(self.settings.models.deployables)

    def _usable(self, bases: Sequence[Base]) -> list[Base]:
        allowed = self.store.bases.allowed()
        return [base for base in bases if allowed is None or base.name in allowed]

    async def ask(self, body: dict[str, Any]) -> tuple[int, bytes]:
        """Send a chat completion to the model or alias of the project that it names: the status and bytes of the
        answer."""
        return await self.ask_by_name(body, self.project, self.key)


async def _context(request: Request) -> ServiceContext:
    if "\0" in request.scope["path"]:  # PostgreSQL refuses it, even in a comparison
        raise NotFound("Nothing here has the character U+0000 in its name.")
    context: ServiceContext = request.app.state.context
    principal: Principal = request.state.principal
    return context.within(principal.project, principal.key)


async def _whole_context(request: Request) -> ServiceContext:
    require(request.state.principal, Need.OPERATOR)
    context: ServiceContext = request.app.state.context
    return context


WholeContext = Annotated[ServiceContext, Depends(_whole_context)]
"""The context of all projects, for the routes of the operator alone. Raises Forbidden for everybody else."""


async def _organization_context(request: Request) -> ServiceContext:
    require(request.state.principal, Scope.ADMIN)
    context: ServiceContext = request.app.state.context
    return context


OrganizationContext = Annotated[ServiceContext, Depends(_organization_context)]
"""The context of all projects, for the routes of a project's keys, which compare the project with the sender's."""


async def _principal(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


SentBy = Annotated[Principal, Depends(_principal)]
"""Who sent the request."""
Context = Annotated[ServiceContext, Depends(_context)]
