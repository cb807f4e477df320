"""Rows turned into what the public API shows, where that takes further rows."""

from collections.abc import Sequence

from sqlalchemy import func, select

from service.adapters.models import RegisteredRow, VersionRow
from service.db import TenantSession
from service.files.models import FileRow
from service.registry import evaluations, promote, versions
from service.registry.schemas import Adapter, EvaluationRecord, Provenance, Version

SCORES = 5
"""Of each version where it is shown or listed."""
EVALUATIONS = 100
"""In a version's provenance."""


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
    return (await listed(session, name, [row]))[row.id]


async def listed(session: TenantSession, name: str, rows: Sequence[VersionRow]) -> dict[str, Version]:
    """Versions of one adapter, by id."""
    if not rows:
        return {}
    manifests = await versions.manifests(session, rows)
    numbers = [row.number for row in rows]
    evaluated = await evaluations.of_versions(session, rows[0].registered_id, numbers, SCORES)
    return {row.id: Version.of(name, row, manifests[row.artifact_id], evaluated[row.number]) for row in rows}


async def provenance(session: TenantSession, name: str, row: VersionRow) -> Provenance:
    manifests = await versions.manifests(session, [row])
    evaluated = (await evaluations.of_versions(session, row.registered_id, [row.number], EVALUATIONS))[row.number]
    files = select(FileRow.id, FileRow.sha256).where(FileRow.id.in_({each.file_id for each in evaluated}))
    hashes = {found[0]: found[1] for found in await session.execute(files)}
    records = [EvaluationRecord.of(each, hashes.get(each.file_id)) for each in evaluated]
    return Provenance.of(name, row, manifests[row.artifact_id], records)
