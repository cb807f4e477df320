"""Projects, the service's tenants, for administrators, and what each may do at once."""

from typing import TYPE_CHECKING

from openai import Omit, omit
from openai.pagination import AsyncCursorPage, SyncCursorPage
from typing_extensions import Unpack

from weft.options import Extras, path
from weft.resource import AsyncResource, SyncResource
from weft.stock import cached_property
from weft.types.organization import Project, RateLimit

if TYPE_CHECKING:
    from weft.stock import AsyncPaginator

PROJECTS = "/organization/projects"
PROJECT = PROJECTS + "/{}"
LIMITS = PROJECT + "/rate_limits"


class RateLimits(SyncResource):
    """A project's limits, one object for each model or for all of them."""

    _administrative = True

    def list(self, *, project_id: str, **extras: Unpack[Extras]) -> SyncCursorPage[RateLimit]:
        return self._pages(path(LIMITS, project_id), RateLimit, extras)

    def update(
        self,
        rate_limit_id: str,
        *,
        project_id: str,
        max_requests_per_1_minute: int | Omit | None = omit,
        max_tokens_per_1_minute: int | Omit | None = omit,
        max_management_requests_per_1_minute: int | Omit | None = omit,
        max_concurrent_jobs: int | Omit = omit,
        max_queued_jobs: int | Omit | None = omit,
        max_concurrent_requests: int | Omit | None = omit,
        max_storage_bytes: int | Omit | None = omit,
        **extras: Unpack[Extras],
    ) -> RateLimit:
        """Changes what is given; None takes a limit away.

        >>> limits = admin.projects.rate_limits
        >>> limit = limits.list(project_id=project_id).data[0]
        >>> limits.update(limit.id, project_id=project_id, max_concurrent_jobs=3).max_concurrent_jobs
        3
        """
        body = {
            "max_requests_per_1_minute": max_requests_per_1_minute,
            "max_tokens_per_1_minute": max_tokens_per_1_minute,
            "max_management_requests_per_1_minute": max_management_requests_per_1_minute,
            "max_concurrent_jobs": max_concurrent_jobs,
            "max_queued_jobs": max_queued_jobs,
            "max_concurrent_requests": max_concurrent_requests,
            "max_storage_bytes": max_storage_bytes,
        }
        return self._do("post", path(LIMITS + "/{}", project_id, rate_limit_id), RateLimit, extras, body)


class AsyncRateLimits(AsyncResource):
    """As RateLimits; every method is awaited."""

    _administrative = True

    def list(
        self, *, project_id: str, **extras: Unpack[Extras]
    ) -> "AsyncPaginator[RateLimit, AsyncCursorPage[RateLimit]]":
        return self._pages(path(LIMITS, project_id), RateLimit, extras)

    async def update(
        self,
        rate_limit_id: str,
        *,
        project_id: str,
        max_requests_per_1_minute: int | Omit | None = omit,
        max_tokens_per_1_minute: int | Omit | None = omit,
        max_management_requests_per_1_minute: int | Omit | None = omit,
        max_concurrent_jobs: int | Omit = omit,
        max_queued_jobs: int | Omit | None = omit,
        max_concurrent_requests: int | Omit | None = omit,
        max_storage_bytes: int | Omit | None = omit,
        **extras: Unpack[Extras],
    ) -> RateLimit:
        body = {
            "max_requests_per_1_minute": max_requests_per_1_minute,
            "max_tokens_per_1_minute": max_tokens_per_1_minute,
            "max_management_requests_per_1_minute": max_management_requests_per_1_minute,
            "max_concurrent_jobs": max_concurrent_jobs,
            "max_queued_jobs": max_queued_jobs,
            "max_concurrent_requests": max_concurrent_requests,
            "max_storage_bytes": max_storage_bytes,
        }
        return await self._do("post", path(LIMITS + "/{}", project_id, rate_limit_id), RateLimit, extras, body)


class Projects(SyncResource):
    """Needs an administrator's key.

    What the `openai` package has itself is where it has it: service accounts, spend limits, the audit log.

        >>> organization = admin.admin.organization
        >>> organization.projects.service_accounts.create(project_id, name="ci").name
        'ci'
        >>> organization.audit_logs.list(project_ids=[project_id]).data[-1].type
        'project.created'
    """

    _administrative = True

    @cached_property
    def rate_limits(self) -> RateLimits:
        return RateLimits(self._client)

    def create(self, *, name: str, **extras: Unpack[Extras]) -> Project:
        """Makes a project: a tenant, with files, jobs, adapters and keys of its own.

        >>> admin.projects.create(name="support").status
        'active'
        """
        return self._do("post", PROJECTS, Project, extras, {"name": name})

    def list(
        self,
        *,
        name: str | Omit = omit,
        include_archived: bool | Omit = omit,
        after: str | Omit = omit,
        limit: int | Omit = omit,
        **extras: Unpack[Extras],
    ) -> SyncCursorPage[Project]:
        """The organization's projects, newest first."""
        query = {"name": name, "include_archived": include_archived, "after": after, "limit": limit}
        return self._pages(PROJECTS, Project, extras, query)

    def retrieve(self, project_id: str, **extras: Unpack[Extras]) -> Project:
        return self._one(path(PROJECT, project_id), Project, extras)

    def update(self, project_id: str, *, name: str, **extras: Unpack[Extras]) -> Project:
        return self._do("post", path(PROJECT, project_id), Project, extras, {"name": name})

    def archive(self, project_id: str, **extras: Unpack[Extras]) -> Project:
        """Ends a project: its keys stop working. It cannot be undone."""
        return self._do("post", path(PROJECT + "/archive", project_id), Project, extras)


class AsyncProjects(AsyncResource):
    """As Projects; every method is awaited."""

    _administrative = True

    @cached_property
    def rate_limits(self) -> AsyncRateLimits:
        return AsyncRateLimits(self._client)

    async def create(self, *, name: str, **extras: Unpack[Extras]) -> Project:
        return await self._do("post", PROJECTS, Project, extras, {"name": name})

    def list(
        self,
        *,
        name: str | Omit = omit,
        include_archived: bool | Omit = omit,
        after: str | Omit = omit,
        limit: int | Omit = omit,
        **extras: Unpack[Extras],
    ) -> "AsyncPaginator[Project, AsyncCursorPage[Project]]":
        query = {"name": name, "include_archived": include_archived, "after": after, "limit": limit}
        return self._pages(PROJECTS, Project, extras, query)

    async def retrieve(self, project_id: str, **extras: Unpack[Extras]) -> Project:
        return await self._one(path(PROJECT, project_id), Project, extras)

    async def update(self, project_id: str, *, name: str, **extras: Unpack[Extras]) -> Project:
        return await self._do("post", path(PROJECT, project_id), Project, extras, {"name": name})

    async def archive(self, project_id: str, **extras: Unpack[Extras]) -> Project:
        return await self._do("post", path(PROJECT + "/archive", project_id), Project, extras)
