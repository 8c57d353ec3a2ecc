"""Who sends a request, and what that allows: here alone a key or token becomes a `Principal`, and a route has a scope.

A route that is not in `SCOPES` keeps the service from starting. Whose rows a request sees is decided by the connection
to the database (`store.confined`), which `Context` takes from the principal.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Request

from tunewright.api.gateway.rates import Limited
from tunewright.api.http.keyring import Keyring
from tunewright.config.oidc import Grant
from tunewright.errors import AuthenticationFailed, Forbidden, NotFound, quoted
from tunewright.store.keys import Scope, hash_of
from tunewright.store.limits import NO_LIMITS, Limits
from tunewright.store.tables import DEFAULT_PROJECT

if TYPE_CHECKING:
    from tunewright.api.http.tokens import Identity, Tokens

PROJECT_HEADER = "openai-project"


class Need(Enum):
    """What a route needs beside a scope."""

    NOTHING = "nothing"
    """It is answered to everyone."""
    OPERATOR = "operator"
    """An admin's key: it tells or changes what is of no project, or of all."""


_READ, _INFER, _TRAIN, _ADMIN = Scope.READ, Scope.INFER, Scope.TRAIN, Scope.ADMIN
_BATCH = "batches/{batch_id}"
"""A job whose creation is a generation, and that is not paused."""
_JOBS = (
    "cleanings/{cleaning_id}",
    "evaluations/{evaluation_id}",
    "exports/{export_id}",
    "fine_tuning/jobs/{job_id}",
    "syntheses/{synthesis_id}",
)
_PROJECT = "/v1/organization/projects/{project_id}"
_KEY, _ADMIN_KEYS = f"{_PROJECT}/api_keys/{{key_id}}", "/v1/organization/admin_api_keys"

SCOPES: dict[tuple[str, str], Scope | Need] = {
    ("GET", "/health"): Need.NOTHING,
    ("GET", "/ready"): Need.NOTHING,
    ("GET", "/metrics"): Need.OPERATOR,
}
"""The scope that a key needs for a route, by its method and path without convertors."""


def _needs(scope: Scope | Need, *routes: str) -> None:
    SCOPES.update({(method, path): scope for method, _, path in (route.partition(" ") for route in routes)})


_needs(
    _INFER,
    "POST /v1/chat/completions", "POST /v1/completions", "POST /v1/responses", "POST /v1/embeddings",
    "POST /v1/tokenize", "POST /v1/detokenize", "POST /v1/fine_tuning/alpha/graders/run",
    "POST /v1/fine_tuning/alpha/graders/validate", "POST /v1/batches", f"POST /v1/{_BATCH}/cancel",
)  # fmt: skip
_needs(
    _READ,
    "GET /v1/files", "GET /v1/files/{file_id}", "GET /v1/files/{file_id}/content", "GET /v1/files/{file_id}/report",
    "GET /v1/files/{file_id}/report.svg", "GET /v1/models", "GET /v1/models/{model}", "GET /v1/models/{model}/card",
    "GET /v1/models/{model}/report", "GET /v1/models/{model}/download", "GET /v1/adapters",
    "GET /v1/adapters/{adapter}", "GET /v1/adapters/{adapter}/download", "GET /v1/aliases", "GET /v1/aliases/{name}",
    "GET /v1/aliases/{name}/history", "GET /v1/aliases/{name}/shadow", "GET /v1/deployments",
    "GET /v1/deployments/{deployment}", "GET /v1/deployments/{deployment}/logs",
    "GET /v1/fine_tuning/jobs/{job_id}/checkpoints", "GET /v1/fine_tuning/jobs/{job_id}/tensorboard",
    "GET /v1/fine_tuning/pipelines/{id}",
    "GET /v1/evaluations/{evaluation_id}/pairs", "GET /v1/evaluations/{evaluation_id}/ratings",
    "POST /v1/fine_tuning/plan", "GET /v1/webhook_endpoints", "GET /v1/webhook_endpoints/{endpoint_id}",
    "GET /v1/webhook_deliveries", "GET /v1/webhook_deliveries/{delivery_id}", "GET /v1/webhook_event_types",
)  # fmt: skip
_needs(
    _TRAIN,
    "POST /v1/files", "DELETE /v1/files/{file_id}", "DELETE /v1/models/{model}", "POST /v1/adapters",
    "POST /v1/adapters/upload", "DELETE /v1/adapters/{adapter}", "POST /v1/adapters/{adapter}/check",
    "POST /v1/adapters/{adapter}/load", "POST /v1/adapters/{adapter}/unload", "POST /v1/adapters/{adapter}/pin",
    "POST /v1/adapters/{adapter}/unpin", "PUT /v1/aliases/{name}", "DELETE /v1/aliases/{name}",
    "POST /v1/aliases/{name}/rollback", "POST /v1/deployments", "DELETE /v1/deployments/{deployment}",
    "POST /v1/deployments/{deployment}/restart", "POST /v1/fine_tuning/pipelines/{id}/cancel",
    "POST /v1/evaluations/{evaluation_id}/ratings", "POST /v1/uploads", "POST /v1/uploads/{upload_id}/parts",
    "POST /v1/uploads/{upload_id}/complete", "POST /v1/uploads/{upload_id}/cancel",
)  # fmt: skip
for _job in (_BATCH, *_JOBS):
    _all = _job.rpartition("/")[0]
    _needs(_READ, f"GET /v1/{_all}", f"GET /v1/{_job}", f"GET /v1/{_job}/events", f"GET /v1/{_job}/logs")
for _job in _JOBS:
    _all = _job.rpartition("/")[0]
    _needs(
        _TRAIN, f"POST /v1/{_all}", *(f"POST /v1/{_job}/{action}" for action in ("cancel", "pause", "resume"))
    )
_needs(
    Need.OPERATOR,
    "GET /v1/organization/projects", "POST /v1/organization/projects", f"POST {_PROJECT}", f"POST {_PROJECT}/archive",
    f"GET {_ADMIN_KEYS}", f"POST {_ADMIN_KEYS}", f"GET {_ADMIN_KEYS}/{{key_id}}", f"DELETE {_ADMIN_KEYS}/{{key_id}}",
    f"POST {_ADMIN_KEYS}/{{key_id}}/rotate",
)  # fmt: skip
_needs(
    _ADMIN,
    "GET /v1/organization/audit_logs", "GET /v1/organization/costs",
    "GET /v1/organization/usage/completions", "GET /v1/organization/usage/embeddings",
    "GET /v1/organization/usage/gpu_seconds",
    f"GET {_PROJECT}", f"GET {_PROJECT}/api_keys", f"POST {_PROJECT}/api_keys", f"GET {_KEY}", f"DELETE {_KEY}",
    f"POST {_KEY}", f"POST {_KEY}/rotate",
    "POST /v1/webhook_endpoints", "POST /v1/webhook_endpoints/{endpoint_id}",
    "DELETE /v1/webhook_endpoints/{endpoint_id}", "POST /v1/webhook_endpoints/{endpoint_id}/rotate_secret",
    "POST /v1/webhook_endpoints/{endpoint_id}/test", "POST /v1/webhook_deliveries/{delivery_id}/replay",
)  # fmt: skip


@dataclass(frozen=True)
class Principal:
    """Who sent a request."""

    project: str
    """Whose rows it sees; "" is no project."""
    key: str | None = None
    """The key's id, or one that is made of the subject of a token; None without either."""
    scopes: frozenset[Scope] = frozenset()
    limits: Limits = NO_LIMITS
    """Of the project."""
    key_limits: Limits = NO_LIMITS
    subject: str | None = None
    """Whom its token is for, as the issuer names them; None without a token."""
    is_operator: bool = False
    """Has every scope in every project, and what is of none."""

    @property
    def limited(self) -> Limited:
        """The rates that hold for what it sends; () where there are none."""
        if self.limits is NO_LIMITS and self.key_limits is NO_LIMITS:
            return ()
        both = ((f"project {self.project}", self.limits), (f"key {self.key}", self.key_limits))
        return tuple((name, limits) for name, limits in both if limits.has_rates)


ANYBODY = Principal(DEFAULT_PROJECT, is_operator=True)
"""Who sends requests to a service without keys."""
NOBODY = Principal("")
"""Who sends a request without a key to a service that has some."""
_OPERATOR_KEY, _OWN_KEY = "TUNEWRIGHT_API_KEY", "own"
_LENGTH_OF_ID = 24


class Gate:
    """Turns the headers of a request into its principal.

    `api_key`: the operator's, from the environment. `own_keys`: paths that another key opens too, and nothing without a
    key. `tokens`: checks the tokens of an issuer, whose groups may do what `grants` say.
    """

    def __init__(
        self,
        api_key: str | None,
        own_keys: dict[str, str] | None = None,
        tokens: Tokens | None = None,
        grants: Sequence[Grant] = (),
    ) -> None:
        self._tokens, self._grants = tokens, grants
        self._api_key = api_key.encode() if api_key else None
        self._own_keys = {path: key.encode() for path, key in (own_keys or {}).items()}

    async def principal(self, headers: Headers, path: str, keyring: Keyring | None) -> Principal | None:
        """None where the key is missing or wrong. Raises NotFound and AuthenticationFailed for a project that the
        sender asks for."""
        scheme, _, text = headers.get("authorization", "").partition(" ")
        given = text.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
        own = self._own_keys.get(path)
        if own is not None and hmac.compare_digest(given, own):
            return Principal(DEFAULT_PROJECT, _OWN_KEY, is_operator=True)
        if self._api_key is not None and hmac.compare_digest(given, self._api_key):
            return await _acting(
                Principal(DEFAULT_PROJECT, _OPERATOR_KEY, is_operator=True), headers, keyring
            )
        if self._tokens is not None and self._tokens.is_token(given):
            return await self._of_token(await self._tokens.identify(given), headers, keyring)
        if given and keyring is not None:
            found = await keyring.find(given)
            if found is not None and found.is_valid(time.time()):
                keyring.note_use(found)
                is_operator = found.project is None
                project = found.project if found.project is not None else DEFAULT_PROJECT
                known = Principal(
                    project,
                    found.id,
                    frozenset(found.scopes),
                    limits=found.project_limits,
                    key_limits=found.limits,
                    is_operator=is_operator,
                )
                return await _acting(known, headers, keyring)
        if self._api_key is None and own is None and not (keyring is not None and await keyring.is_needed()):
            return ANYBODY if keyring is None else await _in_project(ANYBODY, DEFAULT_PROJECT, keyring)
        return None

    async def _of_token(self, found: Identity, headers: Headers, keyring: Keyring | None) -> Principal:
        """Who has a token of this identity. Raises Forbidden where its groups may do nothing."""
        grants = [grant for grant in self._grants if grant.group in found.groups]
        key = f"oidc-{hash_of(found.subject)[:_LENGTH_OF_ID]}"
        known = Principal(DEFAULT_PROJECT, key, subject=found.subject)
        if any(grant.project is None for grant in grants):
            return await _acting(replace(known, is_operator=True), headers, keyring)
        projects = [grant.project for grant in grants if grant.project is not None]
        if not projects:
            raise Forbidden(
                "The token is valid, but none of its groups may do anything here: the operator says which may "
                "(--oidc-grant).",
                code="insufficient_permissions",
            )
        asked = headers.get(PROJECT_HEADER)
        project = asked if asked in projects else projects[0]
        scopes = {Scope(scope) for grant in grants if grant.project == project for scope in grant.scopes}
        known = replace(known, project=project, scopes=frozenset(scopes))
        if keyring is not None:
            if not await keyring.has_project(project):
                raise Forbidden(
                    f"The project {project}, which the token's groups may use, is archived or does not exist: the "
                    "operator says which (--oidc-grant).",
                    code="insufficient_permissions",
                )
            known = await _in_project(known, project, keyring)
        return await _acting(known, headers, keyring)


async def _acting(known: Principal, headers: Headers, keyring: Keyring | None) -> Principal:
    """The principal in the project that it asks for with OpenAI's header."""
    asked = headers.get(PROJECT_HEADER)
    if not asked or asked == known.project:
        if not known.is_operator or keyring is None:
            return known
        return await _in_project(known, known.project, keyring)
    if not known.is_operator:
        raise AuthenticationFailed(
            f"The key is not one of the project that `OpenAI-Project` names: leave the header out, or send "
            f"{known.project}.",
            code="mismatched_project",
        )
    if keyring is None or not await keyring.has_project(asked):
        raise NotFound(f"No such project: {quoted(asked)}.", param="OpenAI-Project", code="project_not_found")
    return await _in_project(known, asked, keyring)


async def _in_project(known: Principal, project: str, keyring: Keyring) -> Principal:
    """The principal in this project, with its limits."""
    limits = await keyring.limits_of(project)
    if limits is known.limits and project == known.project:
        return known
    return replace(known, project=project, limits=limits)


def guard_routes(app: FastAPI, open_paths: Collection[str]) -> None:
    """Have every route check the scope before it does anything, but those that are answered to everyone. Raises
    KeyError for a route that has none."""
    for route in app.router.routes:
        if isinstance(route, APIRoute):
            needed = {method: SCOPES[method, route.path_format] for method in route.methods or ()}
            assert len(needed) == 1, "a route has one method here"
            (scope,) = needed.values()
            route.app = _Guarded(route.app, Need.NOTHING if route.path in open_paths else scope)


class _Guarded:
    def __init__(self, app: ASGIApp, needed: Scope | Need) -> None:
        self._app = app
        self._needed = needed

    async def __call__(self, scope: Request, receive: Receive, send: Send) -> None:
        require(scope["state"]["principal"], self._needed)
        await self._app(scope, receive, send)


def require(principal: Principal, needed: Scope | Need) -> None:
    """Raises Forbidden where the principal may not do what needs this."""
    if needed is Need.NOTHING or principal.is_operator:
        return
    if needed is Need.OPERATOR:
        raise Forbidden(
            "This is for the operator of the service: it needs an admin's key.",
            code="insufficient_permissions",
        )
    if needed not in principal.scopes:
        assert isinstance(needed, Scope)
        raise Forbidden(
            f"The key does not have the scope {needed.value}, which this needs.",
            code="insufficient_permissions",
        )
