"""Removes what uploads leave behind: parts of ended ones, objects that were never whole, and in the end their rows."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from sqlalchemy import and_, delete, func, or_, select, update

from service.contracts.ids import ProjectId, UploadId
from service.contracts.layout import TENANTS, upload_prefix
from service.contracts.store import StoreError
from service.db import DatabaseUnavailable
from service.resources import Resources
from service.uploads.models import PartRow, UploadRow

SWEEP_SECONDS = 60.0
GRACE = timedelta(minutes=1)
UNDER_WAY = timedelta(hours=1)
"""A part that is not stored after so long never will be."""
STALE = timedelta(hours=6)
"""The store forgets objects whose putting began so long ago and has not ended."""
REMEMBERED = timedelta(days=30)
BATCH = 20

log = logging.getLogger("service.uploads")


async def run(resources: Resources) -> None:
    while True:
        try:
            while await sweep(resources, GRACE) == BATCH:
                pass
            await forget(resources)
            before = datetime.now(UTC) - STALE
            await asyncio.to_thread(resources.store.abort_stale_puts, TENANTS, before)
        except (DatabaseUnavailable, StoreError) as error:
            log.warning("uploads are swept later: %s", error)
        await asyncio.sleep(SWEEP_SECONDS)


async def sweep(resources: Resources, grace: timedelta) -> int:
    """Removes the parts of up to BATCH uploads; gives of how many. Any number of processes may sweep at once."""
    over = or_(
        UploadRow.status == "cancelled",
        UploadRow.assembled_at < func.now() - grace,
        and_(UploadRow.status == "pending", UploadRow.expires_at < func.now() - grace),
    )
    under_way = select(PartRow.id).where(
        PartRow.project_id == UploadRow.project_id,
        PartRow.upload_id == UploadRow.id,
        PartRow.stored_at.is_(None),
        PartRow.created_at > func.now() - UNDER_WAY,
    )
    query = select(UploadRow.id, UploadRow.project_id).where(UploadRow.purged_at.is_(None), over, ~under_way.exists())
    async with resources.database.control() as session:
        found = (await session.execute(query.limit(BATCH))).all()
    await asyncio.to_thread(_remove, resources, [(ProjectId(project), UploadId(upload)) for upload, project in found])
    done = [upload for upload, _ in found]
    async with resources.database.control() as session:
        await session.execute(delete(PartRow).where(PartRow.upload_id.in_(done)))
        await session.execute(update(UploadRow).where(UploadRow.id.in_(done)).values(purged_at=func.now()))
    return len(done)


async def forget(resources: Resources) -> None:
    """Uploads long over: until then, completing one again tells its file."""
    async with resources.database.control() as session:
        await session.execute(delete(UploadRow).where(UploadRow.purged_at < func.now() - REMEMBERED))


def _remove(resources: Resources, uploads: list[tuple[ProjectId, UploadId]]) -> None:
    for project, upload in uploads:
        # By what is there, since a part may be stored whose writer was killed before it could say so.
        resources.store.delete(resources.store.keys(upload_prefix(project, upload)))
