"""An adapter's aliases: names such as `prod` that point at a version, and can split or copy its traffic."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from openai import Omit, omit
from openai.pagination import AsyncCursorPage, SyncCursorPage
from typing_extensions import Unpack

from weft.options import Extras, path, with_header
from weft.resource import AsyncResource, SyncResource
from weft.types.aliases import (
    AdapterAlias,
    AliasDeleted,
    AliasTraffic,
    AutomaticRollbackParam,
    ShadowParam,
    ShareParam,
)

if TYPE_CHECKING:
    from weft.stock import AsyncPaginator

ALIASES = "/adapters/{}/aliases"
ALIAS = ALIASES + "/{}"


class Aliases(SyncResource):
    """Each method takes the adapter's name and the alias's."""

    def set(
        self,
        adapter: str,
        alias: str,
        *,
        version: int,
        traffic: Sequence[ShareParam] | Omit | None = omit,
        shadow: ShadowParam | Omit | None = omit,
        automatic_rollback: AutomaticRollbackParam | Omit | None = omit,
        if_revision: int | Omit = omit,
        reason: str | Omit = omit,
        **extras: Unpack[Extras],
    ) -> AdapterAlias:
        """Points an alias at a version; all gateways follow within a second, and no request in flight is dropped.

        `traffic` splits requests over versions by weight, `shadow` copies a fraction of them to a version whose
        answers are thrown away; both end where they are left out. `automatic_rollback` goes on for all that the alias
        will stand for, until None ends it. With `if_revision` (0 for a new alias) it is done only if nobody was
        faster; otherwise ConflictError is raised. `adapters.promote`, `split` and `guard` are shorter.

            >>> alias = client.adapters.aliases.set("support-bot", "prod", version=1, if_revision=0)
            >>> alias.id, alias.version
            ('support-bot@prod', 1)
        """
        body = {
            "version": version,
            "traffic": traffic,
            "shadow": shadow,
            "automatic_rollback": automatic_rollback,
            "if_revision": if_revision,
            "reason": reason,
        }
        return self._do("put", path(ALIAS, adapter, alias), AdapterAlias, extras, body)

    def list(self, adapter: str, **extras: Unpack[Extras]) -> SyncCursorPage[AdapterAlias]:
        """By name."""
        return self._pages(path(ALIASES, adapter), AdapterAlias, extras)

    def retrieve(self, adapter: str, alias: str, **extras: Unpack[Extras]) -> AdapterAlias:
        return self._one(path(ALIAS, adapter, alias), AdapterAlias, extras)

    def traffic(self, adapter: str, alias: str, **extras: Unpack[Extras]) -> AliasTraffic:
        """What became of an alias's requests since it last changed, version by version; some seconds behind."""
        return self._one(path(ALIAS + "/traffic", adapter, alias), AliasTraffic, extras)

    def delete(
        self, adapter: str, alias: str, *, if_revision: int | Omit = omit, **extras: Unpack[Extras]
    ) -> AliasDeleted:
        """Ends an alias. The version that it stood for stays."""
        asked = with_header(extras, "If-Match", if_revision)
        return self._do("delete", path(ALIAS, adapter, alias), AliasDeleted, asked)


class AsyncAliases(AsyncResource):
    """As Aliases; every method is awaited."""

    async def set(
        self,
        adapter: str,
        alias: str,
        *,
        version: int,
        traffic: Sequence[ShareParam] | Omit | None = omit,
        shadow: ShadowParam | Omit | None = omit,
        automatic_rollback: AutomaticRollbackParam | Omit | None = omit,
        if_revision: int | Omit = omit,
        reason: str | Omit = omit,
        **extras: Unpack[Extras],
    ) -> AdapterAlias:
        body = {
            "version": version,
            "traffic": traffic,
            "shadow": shadow,
            "automatic_rollback": automatic_rollback,
            "if_revision": if_revision,
            "reason": reason,
        }
        return await self._do("put", path(ALIAS, adapter, alias), AdapterAlias, extras, body)

    def list(
        self, adapter: str, **extras: Unpack[Extras]
    ) -> "AsyncPaginator[AdapterAlias, AsyncCursorPage[AdapterAlias]]":
        return self._pages(path(ALIASES, adapter), AdapterAlias, extras)

    async def retrieve(self, adapter: str, alias: str, **extras: Unpack[Extras]) -> AdapterAlias:
        return await self._one(path(ALIAS, adapter, alias), AdapterAlias, extras)

    async def traffic(self, adapter: str, alias: str, **extras: Unpack[Extras]) -> AliasTraffic:
        return await self._one(path(ALIAS + "/traffic", adapter, alias), AliasTraffic, extras)

    async def delete(
        self, adapter: str, alias: str, *, if_revision: int | Omit = omit, **extras: Unpack[Extras]
    ) -> AliasDeleted:
        asked = with_header(extras, "If-Match", if_revision)
        return await self._do("delete", path(ALIAS, adapter, alias), AliasDeleted, asked)
