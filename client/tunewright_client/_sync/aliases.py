"""Aliases."""

from __future__ import annotations

from .._core import aliases, endpoints
from .._core.aliases import GuardInput, ShadowInput, Targets
from ..types import Alias, AliasVersion, Deleted, ShadowAnswer
from .pages import Page
from .resources import _Resource


class Aliases(_Resource):
    """`client.aliases`. `user` is who does it, for the history."""

    def set(
        self,
        name: str,
        targets: Targets,
        *,
        shadow: ShadowInput | None = None,
        guard: GuardInput | None = None,
        expected_version: int | None = None,
        wait: bool = True,
        user: str | None = None,
    ) -> Alias:
        """Have requests to `name` answered by `targets`: a model, models with weights ({model: weight}), or
        a list of AliasTarget. What is left out (`shadow`, `guard`) the alias has no more.

        With `wait` the targets are loaded first. `expected_version` is the one that this replaces (0: none).
        Raises BadRequestError where it is another or a target cannot be served, and ServiceUnavailableError
        for one that cannot be loaded; then nothing has changed.
        """
        body = aliases.alias_body(targets, shadow, guard, expected_version, wait)
        return self._client._fetch(endpoints.set_alias(name, body, user))

    def list(self, after: str | None = None, limit: int | None = None) -> Page[Alias]:
        """The aliases, by name; `limit` is the size of a page."""
        return self._client._page(endpoints.list_aliases(after, limit))

    def retrieve(self, name: str) -> Alias:
        """One alias. Raises NotFoundError."""
        return self._client._fetch(endpoints.retrieve_alias(name))

    def history(self, name: str, after: int | None = None, limit: int | None = None) -> Page[AliasVersion]:
        """Its versions, newest first, also after its deletion. Raises NotFoundError."""
        return self._client._page(endpoints.alias_history(name, after, limit))

    def rollback(
        self,
        name: str,
        version: int | None = None,
        *,
        expected_version: int | None = None,
        wait: bool = True,
        user: str | None = None,
    ) -> Alias:
        """Go back to a version, or to what the alias was before: a new version, that of the answer.

        `expected_version` is the one to go back from, by default the one it has now. Errors are those of
        `set`, and NotFoundError.
        """
        context = self._client._context
        flow = aliases.roll_back(context, name, version, expected_version, wait, user)
        return self._client._run(flow)

    def delete(self, name: str, *, user: str | None = None) -> Deleted:
        """Delete an alias; its history stays. Raises NotFoundError."""
        return self._client._fetch(endpoints.delete_alias(name, user))

    def shadow_answers(
        self, name: str, after: str | None = None, limit: int | None = None
    ) -> Page[ShadowAnswer]:
        """What its shadow answered, newest first. Raises NotFoundError."""
        return self._client._page(endpoints.shadow_answers(name, after, limit))
