"""HTTP routes of aliases: what each stands for, changing that, and what has happened to them."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from service.errors import InvalidRequest
from service.idempotency.route import IdempotentRoute
from service.listing import Cursor, Order, Page, page
from service.registry import catalog, history, promote, traffic
from service.registry.alias_schemas import Alias, AliasDeleted, Change, Traffic
from service.registry.bodies import RollBack, SetAlias
from service.tenants.auth import CurrentTenant, TenantTransaction

router = APIRouter(route_class=IdempotentRoute)

Limit = Annotated[int, Query(ge=1, le=100)]
IfMatch = Annotated[str | None, Header(alias="if-match", description='The same as `if_revision`: `3` or `"3"`.')]
ETAG = "etag"
LARGEST = 2**31 - 1


def _revision(header: str | None, body: int | None = None) -> int | None:
    if header is None:
        return body
    digits = header.strip().removeprefix("W/").strip('"')
    if not (digits.isascii() and digits.isdecimal() and int(digits[:11]) <= LARGEST):
        raise InvalidRequest("'If-Match' holds no revision of an alias.", code="invalid_if_match", param="if-match")
    if body not in (None, int(digits)):
        raise InvalidRequest("'If-Match' and 'if_revision' name different revisions.", param="if_revision")
    return int(digits)


@router.get("/{adapter}/aliases")
async def list_aliases(adapter: str, session: TenantTransaction) -> Page[Alias]:
    """All aliases of an adapter, by name."""
    rows = await promote.list_aliases(session, [await catalog.find(session, adapter)])
    return page(rows, len(rows), lambda row: Alias.of(adapter, row))


@router.get("/{adapter}/aliases/{alias}")
async def retrieve_alias(adapter: str, alias: str, session: TenantTransaction, response: Response) -> Alias:
    """One alias; its revision is its ETag too."""
    row = await promote.find(session, await catalog.find(session, adapter), alias)
    response.headers[ETAG] = f'"{row.revision}"'
    return Alias.of(adapter, row)


@router.get("/{adapter}/aliases/{alias}/traffic")
async def retrieve_alias_traffic(adapter: str, alias: str, session: TenantTransaction) -> Traffic:
    """What became of an alias's requests since it last changed, version by version, a canary and a shadow included.

    Some seconds behind. Requests that name a version themselves are in none of it.
    """
    row = await promote.find(session, await catalog.find(session, adapter), alias)
    return Traffic.of(adapter, row, await traffic.of_alias(session, row))


@router.put("/{adapter}/aliases/{alias}")
async def set_alias(
    adapter: str,
    alias: str,
    body: SetAlias,
    tenant: CurrentTenant,
    session: TenantTransaction,
    response: Response,
    if_match: IfMatch = None,
) -> Alias:
    """Points an alias at a version, or splits its traffic. New requests follow within a second on every gateway.

    With a revision, only where nobody has changed the alias since; else 409 `revision_mismatch`.
    """
    asked = {"if_revision": _revision(if_match, body.if_revision), "actor": tenant.key_id, "reason": body.reason}
    row = await promote.promote(session, session.project_id, adapter, alias, body.version, **asked, **body.split)
    response.headers[ETAG] = f'"{row.revision}"'
    return Alias.of(adapter, row)


@router.delete("/{adapter}/aliases/{alias}")
async def delete_alias(
    adapter: str, alias: str, tenant: CurrentTenant, session: TenantTransaction, if_match: IfMatch = None
) -> AliasDeleted:
    """Ends an alias. The version that it stood for stays."""
    await promote.delete(session, adapter, alias, if_revision=_revision(if_match), actor=tenant.key_id)
    return AliasDeleted(id=f"{adapter}@{alias}", adapter=adapter, alias=alias)


@router.post("/{adapter}/rollback")
async def roll_back(adapter: str, body: RollBack, tenant: CurrentTenant, session: TenantTransaction) -> Alias:
    """Points an alias back at the version that had all its traffic before, and ends splits and shadows."""
    row = await promote.rollback(
        session, session.project_id, adapter, body.alias, actor=tenant.key_id, reason=body.reason
    )
    return Alias.of(adapter, row)


@router.get("/{adapter}/history")
async def list_changes(
    adapter: str,
    session: TenantTransaction,
    alias: str | None = None,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "desc",
) -> Page[Change]:
    """Every change of an adapter's aliases, newest first: who, when, why, from which version to which."""
    registered = await catalog.find(session, adapter)
    rows = await history.list_changes(session, registered, alias, Cursor(after=after, limit=limit, order=order))
    return page(rows, limit, lambda row: Change.of(adapter, row))
