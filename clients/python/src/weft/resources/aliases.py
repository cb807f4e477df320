"""An adapter's aliases: names such as `prod` that point at a version, and can split or copy its traffic."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from openai import Omit, omit
from openai.pagination import AsyncCursorPage, SyncCursorPage
from typing_extensions import Unpack

from weft.options import Extras, path
from weft.resource import AsyncResource, SyncResource
from weft.stock import async_raw, cached_property, raw
from weft.types.adapters import AdapterAlias, AliasDeleted, ShadowParam, ShareParam

if TYPE_CHECKING:
    from weft.stock import AsyncPaginator

ALIASES = "/adapters/{}/aliases"
ALIAS = ALIASES + "/{}"


class Aliases(SyncResource):
    """Each method takes the adapter's name and the alias's."""

    @cached_property
    def with_raw_response(self) -> "AliasesWithRawResponse":
        return AliasesWithRawResponse(self)

    def set(
        self,
        adapter: str,
        alias: str,
        *,
        version: int,
        traffic: Sequence[ShareParam] | Omit | None = omit,
        shadow: ShadowParam | Omit | None = omit,
        if_revision: int | Omit = omit,
        reason: str | Omit = omit,
        **extras: Unpack[Extras],
    ) -> AdapterAlias:
        """Points an alias at a version; all gateways follow within a second, and no request in flight is dropped.

        `traffic` splits requests over versions by weight, `shadow` copies a fraction of them to a version whose
        answers are thrown away. With `if_revision` (0 for a new alias) it is done only if nobody was faster;
        otherwise ConflictError is raised.

            >>> alias = client.adapters.aliases.set("support-bot", "prod", version=1, if_revision=0)
            >>> alias.id, alias.version
            ('support-bot@prod', 1)
        """
        body = {
            "version": version,
            "traffic": traffic,
            "shadow": shadow,
            "if_revision": if_revision,
            "reason": reason,
        }
        return self._do("put", path(ALIAS, adapter, alias), AdapterAlias, extras, body)

    def list(self, adapter: str, **extras: Unpack[Extras]) -> SyncCursorPage[AdapterAlias]:
        """By name."""
        return self._pages(path(ALIASES, adapter), AdapterAlias, extras)

    def retrieve(self, adapter: str, alias: str, **extras: Unpack[Extras]) -> AdapterAlias:
        return self._one(path(ALIAS, adapter, alias), AdapterAlias, extras)

    def delete(self, adapter: str, alias: str, **extras: Unpack[Extras]) -> AliasDeleted:
        """Ends an alias. The version that it stood for stays."""
        return self._do("delete", path(ALIAS, adapter, alias), AliasDeleted, extras)


class AsyncAliases(AsyncResource):
    """As Aliases; every method is awaited."""

    @cached_property
    def with_raw_response(self) -> "AsyncAliasesWithRawResponse":
        return AsyncAliasesWithRawResponse(self)

    async def set(
        self,
        adapter: str,
        alias: str,
        *,
        version: int,
        traffic: Sequence[ShareParam] | Omit | None = omit,
        shadow: ShadowParam | Omit | None = omit,
        if_revision: int | Omit = omit,
        reason: str | Omit = omit,
        **extras: Unpack[Extras],
    ) -> AdapterAlias:
        body = {
            "version": version,
            "traffic": traffic,
            "shadow": shadow,
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

    async def delete(self, adapter: str, alias: str, **extras: Unpack[Extras]) -> AliasDeleted:
        return await self._do("delete", path(ALIAS, adapter, alias), AliasDeleted, extras)


class AliasesWithRawResponse:
    def __init__(self, aliases: Aliases) -> None:
        self.set = raw(aliases.set)
        self.list = raw(aliases.list)
        self.retrieve = raw(aliases.retrieve)
        self.delete = raw(aliases.delete)


class AsyncAliasesWithRawResponse:
    def __init__(self, aliases: AsyncAliases) -> None:
        self.set = async_raw(aliases.set)
        self.list = async_raw(aliases.list)
        self.retrieve = async_raw(aliases.retrieve)
        self.delete = async_raw(aliases.delete)
