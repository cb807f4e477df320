"""Takes transfers back from workers that stopped renewing, and deletes what nobody can read any more.

Runs in every service process; any number may run at once.
"""

import asyncio
import logging
import time
from datetime import timedelta

from sqlalchemy import func, or_, select, update

from service.contracts.ids import AdapterId, ProjectId
from service.contracts.layout import adapter_prefix, exports_prefix
from service.contracts.store import StoreError
from service.db import DatabaseUnavailable
from service.resources import Resources
from service.transfers import finish
from service.transfers.models import TransferRow

SWEEP_SECONDS = 60.0
BATCH = 50

log = logging.getLogger("service.transfers")


async def run(resources: Resources) -> None:
    swept = 0.0
    while True:
        try:
            await reap(resources)
            if time.monotonic() - swept > SWEEP_SECONDS:
                await sweep(resources)
                swept = time.monotonic()
        except (DatabaseUnavailable, StoreError) as error:
            log.warning("transfers are looked after later: %s", error)
        await asyncio.sleep(resources.settings.reap_seconds)


async def reap(resources: Resources) -> None:
    """The epoch stays until the next claim, and the status alone fences the lost worker off until then."""
    query = select(TransferRow).where(TransferRow.status == "running", TransferRow.lease_until < func.now())
    async with resources.database.control() as session:
        for row in await session.scalars(query.limit(BATCH).with_for_update(skip_locked=True)):
            reason = f"worker '{row.lease_owner}' went silent."
            await finish.again(session, row, resources.settings.max_lost_workers, reason)


async def sweep(resources: Resources) -> int:
    """Deletes objects of transfers that ended long enough ago for every URL of theirs to have run out."""
    settings = resources.settings
    silent = TransferRow.finished_at < func.now() - timedelta(seconds=settings.presign_seconds)
    expired = TransferRow.expires_at < func.now() - timedelta(seconds=settings.presign_seconds)
    over = or_(TransferRow.kind != "merged", TransferRow.status == "failed", expired)
    query = select(TransferRow).where(TransferRow.purged_at.is_(None), silent, over).limit(BATCH)
    async with resources.database.control() as session:
        rows = (await session.scalars(query)).all()
    for row in rows:
        await asyncio.to_thread(_delete, resources, row)
    async with resources.database.control() as session:
        done = update(TransferRow).where(TransferRow.id.in_([row.id for row in rows]))
        await session.execute(done.values(purged_at=func.now()))
    return len(rows)


def _delete(resources: Resources, row: TransferRow) -> None:
    project = ProjectId(row.project_id)
    if row.kind == "merged":
        prefixes = [exports_prefix(project, row.id)]
    else:
        # What was published under another hash, by an epoch whose machine computed otherwise, is nobody's.
        unused = {*row.reserved} - {row.artifact_id}
        prefixes = [adapter_prefix(project, AdapterId(artifact)) for artifact in unused]
    for prefix in prefixes:
        resources.store.delete(resources.store.keys(prefix))
