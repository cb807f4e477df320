"""Purges registered adapters that were deleted long ago: their names become free, their artifacts end."""

import asyncio
import logging
from datetime import timedelta

from sqlalchemy import delete, func, select, update

from service.adapters import registry
from service.adapters.models import AdapterRow, AliasRow, GrantRow, RegisteredRow, VersionRow
from service.adapters.removal import delete_objects
from service.contracts.ids import AdapterId, ProjectId
from service.db import ControlSession, DatabaseUnavailable
from service.notifications import notify
from service.resources import Resources

SWEEP_SECONDS = 600.0
BATCH = 100

log = logging.getLogger("service.registry")


async def run(resources: Resources) -> None:
    while True:
        try:
            while await sweep(resources) == BATCH:
                pass
        except DatabaseUnavailable as error:
            log.warning("deleted adapters are purged later: %s", error)
        await asyncio.sleep(SWEEP_SECONDS)


async def sweep(resources: Resources) -> int:
    """Purges up to BATCH adapters; gives how many. Any number of processes may sweep at once."""
    kept = timedelta(days=resources.settings.deleted_adapter_days)
    overdue = RegisteredRow.deleted_at < func.now() - kept
    query = select(RegisteredRow.id, RegisteredRow.project_id).where(RegisteredRow.purged_at.is_(None), overdue)
    async with resources.database.control() as session:
        found = (await session.execute(query.limit(BATCH))).all()
    for registered, project in found:
        async with resources.database.control() as session:
            unneeded = await _purge(session, registered, kept)
        for artifact in unneeded:
            await delete_objects(resources.store, ProjectId(project), artifact)
    return len(found)


async def _purge(session: ControlSession, registered: str, kept: timedelta) -> list[AdapterId]:
    """Gives the artifacts whose objects nothing needs any more. Nothing happens where it was restored meanwhile."""
    used = select(VersionRow.artifact_id).where(VersionRow.registered_id == registered, VersionRow.deleted_at.is_(None))
    # Before the adapter's own row, as everybody does.
    held = select(AdapterRow.id).where(AdapterRow.id.in_(used)).order_by(AdapterRow.id).with_for_update()
    artifacts = (await session.scalars(held)).all()
    overdue = select(RegisteredRow.id).where(
        RegisteredRow.id == registered,
        RegisteredRow.purged_at.is_(None),
        RegisteredRow.deleted_at < func.now() - kept,
    )
    if await session.scalar(overdue.with_for_update()) is None:
        return []
    await session.execute(delete(AliasRow).where(AliasRow.registered_id == registered))
    await session.execute(delete(GrantRow).where(GrantRow.registered_id == registered))
    live = update(VersionRow).where(VersionRow.registered_id == registered, VersionRow.deleted_at.is_(None))
    await session.execute(live.values(deleted_at=func.now(), pinned=False))
    await session.execute(update(RegisteredRow).where(RegisteredRow.id == registered).values(purged_at=func.now()))
    await notify(session, "model")
    released = [await registry.release(session, AdapterId(artifact)) for artifact in artifacts]
    return [artifact for artifact in released if artifact is not None]
