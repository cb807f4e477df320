"""What an adapter's names mean, changed by reference: promotion, splits of traffic, rollback and what guards an alias.

`name@alias` says which alias is meant, and a name alone means its alias `default`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from openai import Omit, omit
from openai.pagination import AsyncCursorPage, SyncCursorPage
from typing_extensions import Unpack

from weft.options import Extras, path
from weft.resource import AsyncResource, SyncResource
from weft.resources.aliases import Aliases, AsyncAliases
from weft.resources.references import Reference, named_alias
from weft.stock import cached_property
from weft.types.aliases import (
    AdapterAlias,
    AdapterChange,
    AliasTraffic,
    AutomaticRollbackParam,
    ShadowParam,
    ShareParam,
)

if TYPE_CHECKING:
    from weft.stock import AsyncPaginator

ROLLBACK = "/adapters/{}/rollback"
HISTORY = "/adapters/{}/history"


class Steering(SyncResource):
    @cached_property
    def aliases(self) -> Aliases:
        return Aliases(self._client)

    def promote(
        self,
        reference: str,
        alias: str,
        *,
        if_revision: int | Omit = omit,
        reason: str | Omit = omit,
        **extras: Unpack[Extras],
    ) -> AdapterAlias:
        """Points `alias` at the version that `reference` means, with all of its traffic.

        >>> client.adapters.promote("support-bot@v1", "prod", reason="first release").version
        1
        """
        known = Reference.of(reference)
        version = self._version(known)
        return self.aliases.set(known.adapter, alias, version=version, if_revision=if_revision, reason=reason, **extras)

    def split(
        self,
        reference: str,
        shares: Mapping[int, float],
        *,
        shadow: ShadowParam | Omit | None = omit,
        if_revision: int | Omit = omit,
        reason: str | Omit = omit,
        **extras: Unpack[Extras],
    ) -> AdapterAlias:
        """Splits an alias's traffic over versions by weight, as for a canary, until it is promoted or rolled back.

        The first version is the one that the alias stands for where only one can be meant. A shadow ends where it is
        not given again.

            >>> second = client.adapters.versions.create("support-bot", source={"type": "job", "job_id": job_id})
            >>> alias = client.adapters.split("support-bot@prod", {1: 90, 2: 10})
            >>> [(share.version, share.weight) for share in alias.traffic]
            [(1, 90.0), (2, 10.0)]
        """
        adapter, alias = named_alias(reference)
        version, traffic = _traffic(shares)
        return self.aliases.set(
            adapter,
            alias,
            version=version,
            traffic=traffic,
            shadow=shadow,
            if_revision=if_revision,
            reason=reason,
            **extras,
        )

    def guard(
        self,
        reference: str,
        rule: AutomaticRollbackParam | None,
        *,
        reason: str | Omit = omit,
        **extras: Unpack[Extras],
    ) -> AdapterAlias:
        """Has an alias roll back by itself where too many requests fail; with None no longer. Its traffic stays.

        Raises ConflictError where somebody else changes the alias meanwhile.

            >>> alias = client.adapters.guard("support-bot", {"max_error_rate": 0.05, "min_requests": 50})
            >>> alias.automatic_rollback.max_error_rate, alias.automatic_rollback.window_seconds
            (0.05, 300)
        """
        adapter, alias = named_alias(reference)
        now = self.aliases.retrieve(adapter, alias)
        return self.aliases.set(
            adapter,
            alias,
            version=now.version,
            traffic=_shares(now),
            shadow=_shadow(now),
            automatic_rollback=rule,
            if_revision=now.revision,
            reason=reason,
            **extras,
        )

    def traffic(self, reference: str, **extras: Unpack[Extras]) -> AliasTraffic:
        """How a canary does: requests, errors, tokens and times of each version since the alias last changed.

        >>> traffic = client.adapters.traffic("support-bot")
        >>> [(each.version, each.requests, each.errors) for each in traffic.versions]
        [(1, 0, 0)]
        """
        return self.aliases.traffic(*named_alias(reference), **extras)

    def rollback(
        self, reference: str, alias: str | None = None, *, reason: str | Omit = omit, **extras: Unpack[Extras]
    ) -> AdapterAlias:
        """Points an alias back at the version that had all its traffic before, and ends splits and shadows.

        `rollback("support-bot@prod")` and `rollback("support-bot", "prod")` are the same.
        """
        adapter, alias = named_alias(reference, alias)
        return self._do("post", path(ROLLBACK, adapter), AdapterAlias, extras, {"alias": alias, "reason": reason})

    def history(
        self,
        reference: str,
        *,
        alias: str | Omit = omit,
        after: str | Omit = omit,
        limit: int | Omit = omit,
        order: Literal["asc", "desc"] | Omit = omit,
        **extras: Unpack[Extras],
    ) -> SyncCursorPage[AdapterChange]:
        """Every change of all of the adapter's aliases, or of one, newest first: who, when, why, from what to what.

        >>> [(change.alias, change.to_version) for change in client.adapters.history("support-bot")]
        [('default', 1)]
        """
        adapter, query = _changes(reference, alias)
        query |= {"after": after, "limit": limit, "order": order}
        return self._pages(path(HISTORY, adapter), AdapterChange, extras, query)

    def _version(self, known: Reference) -> int:
        if known.version is not None:
            return known.version
        return self.aliases.retrieve(known.adapter, known.alias or "").version


class AsyncSteering(AsyncResource):
    @cached_property
    def aliases(self) -> AsyncAliases:
        return AsyncAliases(self._client)

    async def promote(
        self,
        reference: str,
        alias: str,
        *,
        if_revision: int | Omit = omit,
        reason: str | Omit = omit,
        **extras: Unpack[Extras],
    ) -> AdapterAlias:
        known = Reference.of(reference)
        version = await self._version(known)
        return await self.aliases.set(
            known.adapter, alias, version=version, if_revision=if_revision, reason=reason, **extras
        )

    async def split(
        self,
        reference: str,
        shares: Mapping[int, float],
        *,
        shadow: ShadowParam | Omit | None = omit,
        if_revision: int | Omit = omit,
        reason: str | Omit = omit,
        **extras: Unpack[Extras],
    ) -> AdapterAlias:
        adapter, alias = named_alias(reference)
        version, traffic = _traffic(shares)
        return await self.aliases.set(
            adapter,
            alias,
            version=version,
            traffic=traffic,
            shadow=shadow,
            if_revision=if_revision,
            reason=reason,
            **extras,
        )

    async def guard(
        self,
        reference: str,
        rule: AutomaticRollbackParam | None,
        *,
        reason: str | Omit = omit,
        **extras: Unpack[Extras],
    ) -> AdapterAlias:
        adapter, alias = named_alias(reference)
        now = await self.aliases.retrieve(adapter, alias)
        return await self.aliases.set(
            adapter,
            alias,
            version=now.version,
            traffic=_shares(now),
            shadow=_shadow(now),
            automatic_rollback=rule,
            if_revision=now.revision,
            reason=reason,
            **extras,
        )

    async def traffic(self, reference: str, **extras: Unpack[Extras]) -> AliasTraffic:
        return await self.aliases.traffic(*named_alias(reference), **extras)

    async def rollback(
        self, reference: str, alias: str | None = None, *, reason: str | Omit = omit, **extras: Unpack[Extras]
    ) -> AdapterAlias:
        adapter, alias = named_alias(reference, alias)
        body = {"alias": alias, "reason": reason}
        return await self._do("post", path(ROLLBACK, adapter), AdapterAlias, extras, body)

    def history(
        self,
        reference: str,
        *,
        alias: str | Omit = omit,
        after: str | Omit = omit,
        limit: int | Omit = omit,
        order: Literal["asc", "desc"] | Omit = omit,
        **extras: Unpack[Extras],
    ) -> "AsyncPaginator[AdapterChange, AsyncCursorPage[AdapterChange]]":
        adapter, query = _changes(reference, alias)
        query |= {"after": after, "limit": limit, "order": order}
        return self._pages(path(HISTORY, adapter), AdapterChange, extras, query)

    async def _version(self, known: Reference) -> int:
        if known.version is not None:
            return known.version
        return (await self.aliases.retrieve(known.adapter, known.alias or "")).version


def _traffic(shares: Mapping[int, float]) -> tuple[int, list[ShareParam]]:
    traffic: list[ShareParam] = [{"version": version, "weight": weight} for version, weight in shares.items()]
    if not traffic:
        raise ValueError("a split needs at least one version, as in {1: 90, 2: 10}")
    return traffic[0]["version"], traffic


def _shares(alias: AdapterAlias) -> list[ShareParam] | None:
    return [{"version": share.version, "weight": share.weight} for share in alias.traffic] if alias.traffic else None


def _shadow(alias: AdapterAlias) -> ShadowParam | None:
    return {"version": alias.shadow.version, "fraction": alias.shadow.fraction} if alias.shadow else None


def _changes(reference: str, alias: str | Omit) -> tuple[str, dict[str, object]]:
    """A name alone means the changes of all its aliases."""
    if "@" not in reference:
        return reference, {"alias": alias}
    adapter, named = named_alias(reference, None if isinstance(alias, Omit) else alias)
    return adapter, {"alias": named}
