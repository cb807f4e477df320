"""Rows turned into what the public API shows, where that takes further rows."""

from collections.abc import Sequence

from sqlalchemy import func, select

from service.adapters.models import RegisteredRow, VersionRow
from service.db import TenantSession
from service.registry import promote, versions
from service.registry.schemas import Adapter, Provenance, Version


async def adapter(session: TenantSession, row: RegisteredRow) -> Adapter:
    return (await adapters(session, [row]))[row.id]


async def adapters(session: TenantSession, rows: Sequence[RegisteredRow]) -> dict[str, Adapter]:
    """By id."""
    await session.flush()
    for row in rows:
        # The database's clock fills in when.
        await session.refresh(row)
    latest = (
        select(VersionRow.registered_id, func.max(VersionRow.number))
        .where(VersionRow.registered_id.in_([row.id for row in rows]), VersionRow.deleted_at.is_(None))
        .group_by(VersionRow.registered_id)
    )
    newest = {row[0]: row[1] for row in await session.execute(latest)}
    aliases: dict[str, dict[str, int]] = {}
    for alias in await promote.list_aliases(session, rows):
        aliases.setdefault(alias.registered_id, {})[alias.alias] = alias.version
    return {row.id: Adapter.of(row, newest.get(row.id), aliases.get(row.id, {})) for row in rows}


async def version(session: TenantSession, name: str, row: VersionRow) -> Version:
    manifests = await versions.manifests(session, [row])
    return Version.of(name, row, manifests[row.artifact_id])


async def provenance(session: TenantSession, name: str, row: VersionRow) -> Provenance:
    manifests = await versions.manifests(session, [row])
    return Provenance.of(name, row, manifests[row.artifact_id])
