"""Keys of projects, for administrators: their values are shown once, their scopes and ends can be changed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from openai import Omit, omit
from openai.pagination import AsyncCursorPage, SyncCursorPage
from typing_extensions import Unpack

from weft.options import Extras, path
from weft.resource import AsyncResource, SyncResource
from weft.types.organization import Key, KeyDeleted, NewKey

if TYPE_CHECKING:
    from weft.stock import AsyncPaginator

KEYS = "/organization/projects/{}/api_keys"
KEY = KEYS + "/{}"


class Keys(SyncResource):
    """Needs an administrator's key."""

    _administrative = True

    def create(
        self,
        *,
        project_id: str,
        name: str,
        scopes: Sequence[str] | Omit = omit,
        expires_in_seconds: int | Omit | None = omit,
        **extras: Unpack[Extras],
    ) -> NewKey:
        """Makes a key. Its value is in this answer and in no later one.

        >>> key = admin.keys.create(project_id=project_id, name="ci", expires_in_seconds=3600)
        >>> Weft(base_url=base_url, api_key=key.value).files.list(limit=1).data is not None
        True
        """
        body = {"name": name, "scopes": scopes, "expires_in_seconds": expires_in_seconds}
        return self._do("post", path(KEYS, project_id), NewKey, extras, body)

    def list(
        self, *, project_id: str, after: str | Omit = omit, limit: int | Omit = omit, **extras: Unpack[Extras]
    ) -> SyncCursorPage[Key]:
        """The project's keys, newest first."""
        return self._pages(path(KEYS, project_id), Key, extras, {"after": after, "limit": limit})

    def retrieve(self, key_id: str, *, project_id: str, **extras: Unpack[Extras]) -> Key:
        return self._one(path(KEY, project_id, key_id), Key, extras)

    def update(
        self,
        key_id: str,
        *,
        project_id: str,
        name: str | Omit = omit,
        scopes: Sequence[str] | Omit = omit,
        expires_in_seconds: int | Omit | None = omit,
        **extras: Unpack[Extras],
    ) -> Key:
        """Changes a key's name, scopes or end.

        >>> key = admin.keys.create(project_id=project_id, name="ci")
        >>> admin.keys.update(key.id, project_id=project_id, name="nightly").name
        'nightly'
        """
        body = {"name": name, "scopes": scopes, "expires_in_seconds": expires_in_seconds}
        return self._do("post", path(KEY, project_id, key_id), Key, extras, body)

    def rotate(
        self, key_id: str, *, project_id: str, grace_seconds: int | Omit = omit, **extras: Unpack[Extras]
    ) -> NewKey:
        """A new key in place of this one, which goes on for `grace_seconds` so that its users can change over."""
        where = path(KEY + "/rotate", project_id, key_id)
        return self._do("post", where, NewKey, extras, {"grace_seconds": grace_seconds})

    def delete(self, key_id: str, *, project_id: str, **extras: Unpack[Extras]) -> KeyDeleted:
        """Revokes a key; within seconds nobody can use it."""
        return self._do("delete", path(KEY, project_id, key_id), KeyDeleted, extras)


class AsyncKeys(AsyncResource):
    """As Keys; every method is awaited."""

    _administrative = True

    async def create(
        self,
        *,
        project_id: str,
        name: str,
        scopes: Sequence[str] | Omit = omit,
        expires_in_seconds: int | Omit | None = omit,
        **extras: Unpack[Extras],
    ) -> NewKey:
        body = {"name": name, "scopes": scopes, "expires_in_seconds": expires_in_seconds}
        return await self._do("post", path(KEYS, project_id), NewKey, extras, body)

    def list(
        self, *, project_id: str, after: str | Omit = omit, limit: int | Omit = omit, **extras: Unpack[Extras]
    ) -> "AsyncPaginator[Key, AsyncCursorPage[Key]]":
        return self._pages(path(KEYS, project_id), Key, extras, {"after": after, "limit": limit})

    async def retrieve(self, key_id: str, *, project_id: str, **extras: Unpack[Extras]) -> Key:
        return await self._one(path(KEY, project_id, key_id), Key, extras)

    async def update(
        self,
        key_id: str,
        *,
        project_id: str,
        name: str | Omit = omit,
        scopes: Sequence[str] | Omit = omit,
        expires_in_seconds: int | Omit | None = omit,
        **extras: Unpack[Extras],
    ) -> Key:
        body = {"name": name, "scopes": scopes, "expires_in_seconds": expires_in_seconds}
        return await self._do("post", path(KEY, project_id, key_id), Key, extras, body)

    async def rotate(
        self, key_id: str, *, project_id: str, grace_seconds: int | Omit = omit, **extras: Unpack[Extras]
    ) -> NewKey:
        where = path(KEY + "/rotate", project_id, key_id)
        return await self._do("post", where, NewKey, extras, {"grace_seconds": grace_seconds})

    async def delete(self, key_id: str, *, project_id: str, **extras: Unpack[Extras]) -> KeyDeleted:
        return await self._do("delete", path(KEY, project_id, key_id), KeyDeleted, extras)
