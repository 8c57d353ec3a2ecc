"""Aliases: `client.aliases`."""

from __future__ import annotations

from typing import Any

from .._core import endpoints
from .._core.inputs import GuardInput, RequireInput, ShadowInput, Targets, alias_body
from ..types import Alias, AliasVersion, Deleted, ShadowAnswer
from .http import AsyncResource
from .pager import AsyncPager


class AsyncAliases(AsyncResource):
    """`client.aliases`. `user` is recorded in the history as the author of a change."""

    async def set(
        self,
        name: str,
        targets: Targets,
        *,
        shadow: ShadowInput | None = None,
        guard: GuardInput | None = None,
        require: RequireInput | None = None,
        force: bool = False,
        expected_version: int | None = None,
        wait: bool = True,
        user: str | None = None,
    ) -> Alias:
        """Let requests to `name` be answered by `targets`: a model, models with weights ({model: weight}), or a
        list of AliasTarget. An alias loses its `shadow` or `guard` where the argument is left out.

        `require` is what new targets must have shown in an evaluation, now and from now on, such as
        `{"evaluation": {"data": "file-...", "metric": "accuracy"}, "min": 0.8}`; left out, it stays as it is, and False
        requires nothing any more. With `force` targets are set that have not passed, which the history records.

        With `wait` the targets are loaded first. `expected_version` is the version to replace (0: the alias must not
        exist). Raises BadRequestError where the alias has another version or a target cannot be served, ConflictError
        with the numbers where a new target has not passed, and ServiceUnavailableError for a target that cannot be
        loaded; nothing has changed then.
        """
        body = alias_body(targets, shadow, guard, expected_version, wait, require, force)
        return await self._http.fetch(endpoints.set_alias(name, body, user))

    def list(self, after: str | None = None, limit: int | None = None) -> AsyncPager[Alias]:
        """All aliases by name; `limit` is the size of a page."""
        return self._http.page(endpoints.list_aliases(after, limit))

    async def retrieve(self, name: str) -> Alias:
        """One alias. Raises NotFoundError."""
        return await self._http.fetch(endpoints.retrieve_alias(name))

    def history(
        self, name: str, after: int | None = None, limit: int | None = None
    ) -> AsyncPager[AliasVersion]:
        """The versions of an alias, newest first, also after its deletion. Raises NotFoundError."""
        return self._http.page(endpoints.alias_history(name, after, limit))

    async def rollback(
        self,
        name: str,
        version: int | None = None,
        *,
        expected_version: int | None = None,
        wait: bool = True,
        user: str | None = None,
    ) -> Alias:
        """Return to `version`, by default to the one before the present one. The result is a new version.

        `expected_version` is the present version; by default it is read first, so that a rollback whose answer was
        lost is not done twice. Raises what `set` raises, and NotFoundError.
        """
        if expected_version is None:
            expected_version = (await self.retrieve(name)).version
        body: dict[str, Any] = {"expected_version": expected_version, "wait": wait}
        if version is not None:
            body["version"] = version
        return await self._http.fetch(endpoints.roll_back_alias(name, body, user))

    async def delete(self, name: str, *, user: str | None = None) -> Deleted:
        """Delete an alias. Its history is kept. Raises NotFoundError."""
        return await self._http.fetch(endpoints.delete_alias(name, user))

    def shadow_answers(
        self, name: str, after: str | None = None, limit: int | None = None
    ) -> AsyncPager[ShadowAnswer]:
        """The recorded answers of the alias's shadows, newest first. Raises NotFoundError."""
        return self._http.page(endpoints.shadow_answers(name, after, limit))
