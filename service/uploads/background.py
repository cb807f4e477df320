"""Puts large files together after their upload was completed, one after the other in each process.

Whoever does it holds the upload for HELD and says again and again that it still does; one that was killed leaves it to
the next, which begins anew. Twice at once does no harm: both write the same bytes to the same key.
"""

import asyncio
import logging
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select, update

from service.contracts.ids import FileId, ProjectId
from service.contracts.layout import file_key
from service.contracts.store import ObjectMissing, StoreError
from service.db import DatabaseUnavailable, TenantSession
from service.errors import ApiError
from service.files import reports
from service.files.checking import in_thread
from service.files.content import Content, described
from service.files.models import FileRow
from service.files.reservation import NewFile
from service.resources import Resources
from service.uploads.assemble import Assembly
from service.uploads.complete import parts_of, require_md5
from service.uploads.models import UploadRow

POLL_SECONDS = 1.0
HELD = timedelta(seconds=60)
RENEW_SECONDS = 15.0

log = logging.getLogger("service.uploads")


@dataclass(frozen=True)
class Failed:
    """Why the file can never be put together."""

    details: str


async def run(resources: Resources) -> None:
    while True:
        try:
            while await assemble_next(resources):
                pass
        except (DatabaseUnavailable, StoreError) as error:
            log.warning("a file is put together later: %s", error)
        await asyncio.sleep(POLL_SECONDS)


async def assemble_next(resources: Resources) -> bool:
    """Puts one file together; whether there was one."""
    upload = await _claim(resources)
    if upload is None:
        return False
    holding = asyncio.create_task(_hold(resources, upload.id))
    try:
        outcome = await _assembled(resources, upload)
    finally:
        holding.cancel()
    async with resources.database.tenant(ProjectId(upload.project_id)) as session:
        wanted = await _settle(session, upload, outcome)
    if not wanted:
        await _remove(resources, upload)
    async with resources.database.tenant(ProjectId(upload.project_id)) as session:
        own = update(UploadRow).where(UploadRow.id == upload.id)
        await session.execute(own.values(assembled_at=func.now()))
    return True


async def _claim(resources: Resources) -> UploadRow | None:
    free = (UploadRow.assembling_until.is_(None)) | (UploadRow.assembling_until < func.now())
    waiting = UploadRow.status == "completed", UploadRow.assembled_at.is_(None), free
    oldest = select(UploadRow.id).where(*waiting).order_by(UploadRow.created_at).limit(1)
    first = oldest.with_for_update(skip_locked=True).scalar_subquery()
    claim = update(UploadRow).where(UploadRow.id == first).values(assembling_until=func.now() + HELD)
    async with resources.database.control() as session:
        return await session.scalar(claim.returning(UploadRow))


async def _hold(resources: Resources, upload_id: str) -> None:
    own = update(UploadRow).where(UploadRow.id == upload_id).values(assembling_until=func.now() + HELD)
    while True:
        await asyncio.sleep(RENEW_SECONDS)
        try:
            async with resources.database.control() as session:
                await session.execute(own)
        except DatabaseUnavailable as error:
            log.warning("upload %s is not held for the moment: %s", upload_id, error)


async def _assembled(resources: Resources, upload: UploadRow) -> Content | Failed:
    assert upload.file_id is not None
    file_id, line = FileId(upload.file_id), resources.settings.max_line_bytes
    try:
        async with resources.database.tenant(ProjectId(upload.project_id)) as session:
            parts = await parts_of(session, upload, upload.part_ids or [])
        assembly = Assembly(upload, file_id, parts, line, refusable=False, md5=upload.md5)
        content = await in_thread(lambda stop: assembly.run(resources.store, stop))
        require_md5(content, upload.md5)
        return content
    except ObjectMissing:
        return Failed("A part of the file is gone from the store; upload it again.")
    except ApiError as error:
        return Failed(error.message)


async def _settle(session: TenantSession, upload: UploadRow, outcome: Content | Failed) -> bool:
    """Says in the file's row what came of it. Whether its bytes are to stay: the file may be deleted by now."""
    if isinstance(outcome, Failed):
        new = NewFile(upload.filename, upload.purpose, upload.bytes, "", "error", outcome.details)
    else:
        new = described(upload.filename, upload.purpose, outcome)
        if outcome.findings is not None:
            await reports.keep(session, session.project_id, outcome.sha256, upload.purpose, outcome.findings)
    kept = update(FileRow).where(FileRow.id == upload.file_id, FileRow.purged_at.is_(None))
    row = await session.scalar(kept.values(**new.values()).returning(FileRow.id))
    return row is not None and not isinstance(outcome, Failed)


async def _remove(resources: Resources, upload: UploadRow) -> None:
    key = file_key(ProjectId(upload.project_id), FileId(upload.file_id or ""))
    await asyncio.to_thread(resources.store.delete, [key])
