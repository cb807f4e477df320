"""Removes the bytes of files that are deleted, expired or never completed, once nothing reads them any more."""

import asyncio
import logging
from datetime import timedelta

from sqlalchemy import func, select, text, update

from service.contracts import layout
from service.contracts.ids import FileId, ProjectId
from service.contracts.job import TERMINAL
from service.contracts.store import StoreError
from service.db import DatabaseUnavailable
from service.files.models import FileRow
from service.resources import Resources

SWEEP_SECONDS = 60.0
GRACE = timedelta(minutes=1)
"""Longer than any transaction, so that a job created just before its file was deleted is seen."""
BATCH = 100

log = logging.getLogger("service.files")

# Text, because which table refers to files is known to the schema and not to this package, which lies below them.
NOT_NEEDED = text(
    """
    not exists (
      select 1 from jobs
      where jobs.project_id = files.project_id and files.id in (jobs.training_file, jobs.validation_file)
        and jobs.status <> all(:terminal)
    )
    and not exists (
      select 1 from jobs
      where jobs.project_id = files.project_id and jobs.on_success #>> '{evaluation,file_id}' = files.id
        and jobs.status <> all(:terminal)
    )
    and not exists (
      select 1 from evaluations
      where evaluations.project_id = files.project_id and evaluations.file_id = files.id
        and evaluations.finished_at is null
    )
    and not exists (
      select 1 from batches
      where batches.project_id = files.project_id and batches.input_file_id = files.id and batches.purged_at is null
    )
    """
)

FORGET = text(
    """
    delete from file_reports as old
    where project_id = any(:projects) and exists (
      select from (values (old.sha256), (old.compared_sha256)) as content (sha256)
      where content.sha256 <> '' and not exists (
        select from files
        where files.project_id = old.project_id and files.sha256 = content.sha256 and purged_at is null))
    """
)
"""Reports on contents of these projects that no file has any more."""


async def run(resources: Resources) -> None:
    while True:
        try:
            while await sweep(resources, GRACE) == BATCH:
                pass
        except (DatabaseUnavailable, StoreError) as error:
            log.warning("files are swept later: %s", error)
        await asyncio.sleep(SWEEP_SECONDS)


async def sweep(resources: Resources, grace: timedelta) -> int:
    """Removes up to BATCH objects; gives how many. Any number of processes may sweep at once."""
    over = func.least(FileRow.deleted_at, FileRow.expires_at) < func.now() - grace
    query = (
        select(FileRow.id, FileRow.project_id)
        .where(FileRow.purged_at.is_(None), over, NOT_NEEDED.bindparams(terminal=sorted(TERMINAL)))
        .limit(BATCH)
    )
    async with resources.database.control() as session:
        found = (await session.execute(query)).all()
    keys = [layout.file_key(ProjectId(project), FileId(file)) for file, project in found]
    await asyncio.to_thread(resources.store.delete, keys)
    done = [file for file, _ in found]
    async with resources.database.control() as session:
        await session.execute(update(FileRow).where(FileRow.id.in_(done)).values(purged_at=func.now()))
        await session.execute(FORGET, {"projects": [project for _, project in found]})
    return len(done)
