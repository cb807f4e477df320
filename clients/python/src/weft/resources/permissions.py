"""Which other projects may use an adapter, for administrators."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from openai import Omit, omit
from openai.pagination import AsyncCursorPage, SyncCursorPage
from typing_extensions import Unpack

from weft.options import Extras, path
from weft.resource import AsyncResource, SyncResource
from weft.types.adapters import AdapterPermission, PermissionDeleted

if TYPE_CHECKING:
    from weft.stock import AsyncPaginator

PERMISSIONS = "/adapters/{}/permissions"


class Permissions(SyncResource):
    """Needs an administrator's key. Each method takes the adapter's id, or its name where only one project has it."""

    _administrative = True

    def create(
        self, adapter: str, *, project_ids: Sequence[str], **extras: Unpack[Extras]
    ) -> SyncCursorPage[AdapterPermission]:
        """Lets other projects use an adapter.

        >>> other = admin.projects.create(name="research").id
        >>> [permission.project_id == other for permission in admin.adapters.permissions.create(
        ...     adapter_id, project_ids=[other])]
        [True]
        """
        options = self._options(extras)
        return self._client.get_api_list(
            path(PERMISSIONS, adapter),
            model=AdapterPermission,
            page=SyncCursorPage[AdapterPermission],
            body={"project_ids": project_ids},
            options=options,
            method="post",
        )

    def list(
        self,
        adapter: str,
        *,
        after: str | Omit = omit,
        limit: int | Omit = omit,
        order: Literal["asc", "desc"] | Omit = omit,
        **extras: Unpack[Extras],
    ) -> SyncCursorPage[AdapterPermission]:
        """Newest first."""
        where = path(PERMISSIONS, adapter)
        return self._pages(where, AdapterPermission, extras, {"after": after, "limit": limit, "order": order})

    def delete(self, permission_id: str, *, adapter: str, **extras: Unpack[Extras]) -> PermissionDeleted:
        """Takes a permission back; requests in flight may finish."""
        where = path(PERMISSIONS + "/{}", adapter, permission_id)
        return self._do("delete", where, PermissionDeleted, extras)


class AsyncPermissions(AsyncResource):
    """As Permissions; every method is awaited."""

    _administrative = True

    def create(
        self, adapter: str, *, project_ids: Sequence[str], **extras: Unpack[Extras]
    ) -> "AsyncPaginator[AdapterPermission, AsyncCursorPage[AdapterPermission]]":
        return self._client.get_api_list(
            path(PERMISSIONS, adapter),
            model=AdapterPermission,
            page=AsyncCursorPage[AdapterPermission],
            body={"project_ids": project_ids},
            options=self._options(extras),
            method="post",
        )

    def list(
        self,
        adapter: str,
        *,
        after: str | Omit = omit,
        limit: int | Omit = omit,
        order: Literal["asc", "desc"] | Omit = omit,
        **extras: Unpack[Extras],
    ) -> "AsyncPaginator[AdapterPermission, AsyncCursorPage[AdapterPermission]]":
        where = path(PERMISSIONS, adapter)
        return self._pages(where, AdapterPermission, extras, {"after": after, "limit": limit, "order": order})

    async def delete(self, permission_id: str, *, adapter: str, **extras: Unpack[Extras]) -> PermissionDeleted:
        where = path(PERMISSIONS + "/{}", adapter, permission_id)
        return await self._do("delete", where, PermissionDeleted, extras)
