"""Puts the application together: LitServe's server with our routers, spec, middleware and errors on it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Awaitable, Callable

import litserve as ls
import litserve.server as litserve_server
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.formparsers import MultiPartParser
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tunewright.api.adapters import routes as adapters
from tunewright.api.aliases import routes as aliases
from tunewright.api.batches import routes as batches
from tunewright.api.cleanings import routes as cleanings
from tunewright.api.deployments import routes as deployments
from tunewright.api.evaluations import routes as evaluations
from tunewright.api.exports import routes as exports
from tunewright.api.files import report
from tunewright.api.files import routes as files
from tunewright.api.fine_tuning import pipelines, plan
from tunewright.api.fine_tuning import routes as fine_tuning
from tunewright.api.gateway.generation import ROUTES, GenerationSpec
from tunewright.api.gateway.proxy import Gateway
from tunewright.api.gateway.routing import Router
from tunewright.api.graders import routes as graders
from tunewright.api.health import routes as health
from tunewright.api.http import errors, openapi
from tunewright.api.http.access import Gate, guard_routes
from tunewright.api.http.context import ServiceContext
from tunewright.api.http.docs_page import serve_docs
from tunewright.api.http.keyring import Keyring
from tunewright.api.http.local import LocalMiddleware
from tunewright.api.http.middleware import OPEN_PATHS, PARTS, AccessMiddleware
from tunewright.api.http.paths import SingleSlashes
from tunewright.api.http.queries import refuse_unknown_parameters
from tunewright.api.http.trail import AuditTrail
from tunewright.api.models import routes as models
from tunewright.api.organization import audit, usage
from tunewright.api.organization import routes as organization
from tunewright.api.syntheses import routes as syntheses
from tunewright.api.telemetry import routes as telemetry
from tunewright.api.telemetry.counts import HttpCounts
from tunewright.api.telemetry.exporter import Exporter
from tunewright.api.uploads import routes as uploads
from tunewright.api.uploads.parts import PART_LIMIT
from tunewright.api.webhooks import routes as webhooks
from tunewright.config import Settings
from tunewright.engine.devices import find_devices
from tunewright.engine.worker import EngineAPI
from tunewright.registry.workspace import Workspace
from tunewright.store.store import Store
from tunewright.webhooks.sending import Sender

_GENERATION_LIMIT, _BODY_LIMIT = 32 * 2**20, 8 * 2**20
"""Bytes of a body. A generation may have images in it; the largest others have a chat template."""
_FORM_OVERHEAD = 2**20
_SPOOL = 2**20
_METRICS = "/metrics"

# LitServe 0.2.19 mistakes an installed `mcp`, a dependency of vLLM, for `fastmcp`, and fails.
litserve_server._MCP_AVAILABLE = False
# It also keeps whole uploads in memory, to pickle them for its workers. Here they are spooled to disk.
MultiPartParser.spool_max_size = _SPOOL


def build(settings: Settings, store: Store) -> tuple[ls.LitServer, GenerationSpec]:
    """Build the server, not started, and the spec that sends control operations to the engine worker."""
    spec = GenerationSpec(settings.serving.media_domain)
    engine_api = EngineAPI()
    engine_api.spec = spec
    server = ls.LitServer(
        engine_api,
        accelerator="cpu",
        devices=1,
        workers_per_device=1,
        timeout=False,
        restart_workers=True,
        healthcheck_path="/litserve/health",
        info_path="/litserve/info",
    )
    server.monitor_internal = 0.25  # seconds between checks whether the worker must be restarted
    app: FastAPI = server.app
    _remove_litserve_pages(app)
    app.router.redirect_slashes = False  # the redirect would go to the Host that the request claims
    app.user_middleware.clear()  # LitServe's gzip would buffer streams
    for routes in (
        health, organization, usage, audit, files, report, cleanings, fine_tuning, pipelines, plan, exports,
        evaluations, models, adapters, aliases, deployments, graders, batches, syntheses, uploads, webhooks,
        telemetry,
    ):  # fmt: skip
        _add_routes(app, routes.router)
    _add_routes(app, uploads.forms)
    upload = settings.server.max_upload + _FORM_OVERHEAD
    http = HttpCounts()
    open_paths = OPEN_PATHS | ({_METRICS} if settings.server.metrics == "open" else set())
    if settings.server.api_key is None:
        app.add_middleware(LocalMiddleware, allowed=settings.server.allowed_host, open_paths=open_paths)
    app.add_middleware(  # the one around all others, since it gives the request its id
        AccessMiddleware,
        gate=_gate(settings),
        limits={
            None: _BODY_LIMIT,
            **dict.fromkeys(ROUTES, _GENERATION_LIMIT),
            "/v1/files": upload,
            "/v1/adapters/upload": upload,
            PARTS: min(upload, PART_LIMIT + _FORM_OVERHEAD),
        },
        max_uploads=settings.server.max_uploads,
        unchanging=ROUTES,
        open_paths=open_paths,
        counts=http,
    )
    app.add_middleware(SingleSlashes)  # the last one added is the first to see a request
    errors.install_error_handlers(app)
    openapi.describe(app)
    serve_docs(app)
    _shorten_generations(app)
    refuse_unknown_parameters(app)
    guard_routes(app, open_paths)
    workspace = Workspace.of(settings.storage)
    read_only = Store.open(store.database.url)  # with connections of its own
    names = Router(
        read_only,
        workspace.leases,
        spec.control,
        max_requests=settings.server.max_requests,
        load_on_demand=settings.serving.load_on_demand,
    )
    spec.gateway = Gateway(
        names,
        store,
        request_timeout=settings.server.request_timeout,
        max_generated_tokens=settings.server.max_generated_tokens,
        most_names=settings.server.metrics_names,
    )
    exporter = Exporter(spec.gateway, http, store, workspace, most_names=settings.server.metrics_names)
    app.state.context = ServiceContext(
        settings,
        store,
        workspace,
        spec.control,
        functools.cache(lambda: find_devices(settings.processes)),
        ask_by_name=spec.gateway.ask_by_name,
        rates=spec.gateway.rates,
        keyring=Keyring(read_only),
        trail=AuditTrail(store),
        exporter=exporter if settings.server.metrics != "off" else None,
        webhook_sender=functools.cache(
            lambda: Sender(settings.webhooks.webhook_host, settings.webhooks.webhook_timeout)
        ),
    )
    return server, spec


def _gate(settings: Settings) -> Gate:
    key, own_key = settings.server.api_key, settings.server.metrics_key
    tokens = None
    if settings.oidc.oidc_issuer is not None:
        from tunewright.api.http.tokens import Tokens  # PyJWT takes long to import

        tokens = Tokens(settings.oidc)
    return Gate(
        key.get_secret_value() if key else None,
        {_METRICS: own_key.get_secret_value()} if own_key else None,
        tokens,
        settings.oidc.grants,
    )


class _Answer:
    """The ASGI application of an endpoint. Its errors reach the handlers through Starlette's middleware."""

    def __init__(self, endpoint: Callable[[Request], Awaitable[Response]]) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._endpoint(Request(scope, receive))
        await response(scope, receive, send)


def _add_routes(app: FastAPI, router: APIRouter) -> None:
    """Add the routes of a router that has all of its options itself. `include_router` would make the types of their
    parameters and answers a second time, which is a fifth of the api's start."""
    app.router.routes += map(copy.copy, router.routes)


def _shorten_generations(app: FastAPI) -> None:
    """Look at the routes of generations first, and call their endpoints without FastAPI's dependencies, of which they
    have none: both take longer than the gateway itself (docs/decisions/0034)."""
    routes = app.router.routes
    routes.sort(key=lambda route: getattr(route, "path", None) not in ROUTES)
    for route in routes[: len(ROUTES)]:
        assert isinstance(route, APIRoute)
        route.app = _Answer(route.endpoint)


def _remove_litserve_pages(app: FastAPI) -> None:
    """Remove LitServe's index, health and info routes: its health does not cover vLLM."""
    app.router.routes[:] = [
        route
        for route in app.router.routes
        if not (isinstance(route, Route) and (route.path == "/" or route.path.startswith("/litserve/")))
    ]
