"""Projects and their keys: `client.projects`, `client.api_keys`, `client.admin_api_keys`."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .._core import organization
from ..types import AdminApiKey, ApiKey, Deleted, NewAdminApiKey, NewApiKey, Project
from .http import AsyncResource
from .pager import AsyncPager


class AsyncProjects(AsyncResource):
    """`client.projects`: the tenants of the service. For admins; a project's own key with the scope admin can retrieve
    its project."""

    async def create(self, name: str, *, bases: Collection[str] | None = None) -> Project:
        """A project with nothing in it. `bases`: the bases and deployables that it may use; None: all. Raises
        BadRequestError for a name that is none of them."""
        return await self._http.fetch(organization.create_project(name, bases))

    def list(
        self, *, archived: bool = False, after: str | None = None, limit: int | None = None
    ) -> AsyncPager[Project]:
        """All projects, newest first; `limit` is the size of a page."""
        return self._http.page(organization.list_projects(archived, after, limit))

    async def retrieve(self, project: str) -> Project:
        """Raises NotFoundError."""
        return await self._http.fetch(organization.retrieve_project(project))

    async def rename(self, project: str, name: str) -> Project:
        """Raises NotFoundError."""
        return await self._http.fetch(organization.rename_project(project, name))

    async def limit(self, project: str, limits: Mapping[str, int | None]) -> Project:
        """Set limits, such as {"requests_per_minute": 60}; None takes one away, and those that are not named stay (see
        `Limits`). Raises NotFoundError."""
        return await self._http.fetch(organization.limit_project(project, limits))

    async def limit_bases(self, project: str, bases: Collection[str] | None) -> Project:
        """Set the bases and deployables that the project may use, from the next request on; None: all. Raises
        NotFoundError, and BadRequestError for a name that is none of them."""
        return await self._http.fetch(organization.limit_bases(project, bases))

    async def archive(self, project: str) -> Project:
        """Refuse the project's keys from now on; what belongs to it stays. Raises NotFoundError, and BadRequestError
        for the project default."""
        return await self._http.fetch(organization.archive_project(project))


class AsyncApiKeys(AsyncResource):
    """`client.api_keys`: the keys of a project. For admins, and for its own keys with the scope admin."""

    async def create(
        self,
        project: str,
        name: str,
        *,
        scopes: Collection[str] | None = None,
        expires_in: int | None = None,
        limits: Mapping[str, int | None] | None = None,
    ) -> NewApiKey:
        """A key whose `value` cannot be read again.

        - scopes: of read, infer, train, admin; by default the first three
        - expires_in: seconds until it expires; None: never
        - limits: such as {"requests_per_minute": 60}

        Raises NotFoundError, and PermissionDeniedError for scopes that the caller's key does not have.
        """
        return await self._http.fetch(organization.create_key(project, name, scopes, expires_in, limits))

    def list(self, project: str, after: str | None = None, limit: int | None = None) -> AsyncPager[ApiKey]:
        """The keys that were not revoked, newest first; `limit` is the size of a page."""
        return self._http.page(organization.list_keys(project, after, limit))

    async def retrieve(self, project: str, key: str) -> ApiKey:
        """Raises NotFoundError."""
        return await self._http.fetch(organization.retrieve_key(project, key))

    async def limit(self, project: str, key: str, limits: Mapping[str, int | None]) -> ApiKey:
        """Set the key's own rates: requests_per_minute, tokens_per_minute, concurrent_requests; None takes one away.
        Raises NotFoundError."""
        return await self._http.fetch(organization.limit_key(project, key, limits))

    async def rotate(self, project: str, key: str, *, overlap: int = 0) -> NewApiKey:
        """A new key in the place of this one, which is refused at once, or after `overlap` seconds."""
        return await self._http.fetch(organization.rotate_key(project, key, overlap))

    async def revoke(self, project: str, key: str) -> Deleted:
        """Refuse the key from the next request on. Raises NotFoundError."""
        return await self._http.fetch(organization.revoke_key(project, key))


class AsyncAdminApiKeys(AsyncResource):
    """`client.admin_api_keys`: keys that may do everything in all projects. For admins."""

    async def create(self, name: str, *, expires_in: int | None = None) -> NewAdminApiKey:
        """A key whose `value` cannot be read again. `expires_in`: seconds until it expires; None: never."""
        return await self._http.fetch(organization.create_admin_key(name, expires_in))

    def list(self, after: str | None = None, limit: int | None = None) -> AsyncPager[AdminApiKey]:
        """The keys that were not revoked, newest first; `limit` is the size of a page."""
        return self._http.page(organization.list_admin_keys(after, limit))

    async def retrieve(self, key: str) -> AdminApiKey:
        """Raises NotFoundError."""
        return await self._http.fetch(organization.retrieve_admin_key(key))

    async def rotate(self, key: str, *, overlap: int = 0) -> NewAdminApiKey:
        """A new key in the place of this one, which is refused at once, or after `overlap` seconds."""
        return await self._http.fetch(organization.rotate_admin_key(key, overlap))

    async def revoke(self, key: str) -> Deleted:
        """Refuse the key from the next request on. Raises NotFoundError."""
        return await self._http.fetch(organization.revoke_admin_key(key))
