"""Making a file of an upload. Completing it again with the same parts gives the same file.

Up to `foreground_bytes` the parts are put together while the caller waits, and a training file with bad lines is
refused as `/v1/files` does: the upload stays pending. A larger one is a file at once, of status `uploaded`, which
`background` puts together; its status then says whether it can be used.
"""

import contextlib

from sqlalchemy import func, select

from service.contracts.ids import FileId
from service.contracts.store import ObjectMissing
from service.db import DatabaseUnavailable, TenantSession
from service.errors import InvalidRequest
from service.files import reports, reservation
from service.files.checking import in_thread
from service.files.content import Content, described, refuse_bad
from service.files.models import FileRow
from service.files.reservation import NewFile, lifetime_of
from service.resources import Resources
from service.tenants import audit
from service.tenants.auth import Tenant
from service.uploads.assemble import Assembly, Refused, StoredPart
from service.uploads.models import PartRow, UploadRow
from service.uploads.pending import find, require_pending
from service.uploads.schemas import CompleteUpload

Completed = tuple[UploadRow, FileRow]


async def complete(resources: Resources, tenant: Tenant, upload_id: str, request: CompleteUpload) -> Completed:
    async with resources.database.tenant(tenant.project_id) as session:
        upload = await find(session, upload_id, hold=True)
        before = await _completed(session, upload, request)
        if before is not None:
            return before
        await require_pending(session, upload)
        parts = await parts_of(session, upload, request.part_ids)
        _require_whole(upload, parts)
        if upload.bytes > resources.settings.foreground_bytes:
            return await _begin(session, upload, request)
        new = NewFile(upload.filename, upload.purpose, upload.bytes, sha256="")
        file_id = await reservation.insert_reserved(session, tenant.project_id, new)
    assembly = Assembly(upload, file_id, parts, resources.settings.max_line_bytes, refusable=True, md5=request.md5)
    return await _finish(resources, tenant, assembly, request)


async def parts_of(session: TenantSession, upload: UploadRow, ids: list[str]) -> list[StoredPart]:
    """The parts in that order. Raises InvalidRequest for one that is named twice or is not a part of this upload."""
    if len(set(ids)) != len(ids):
        raise InvalidRequest("A part is named twice.", code="invalid_part", param="part_ids")
    query = select(PartRow).where(PartRow.upload_id == upload.id, PartRow.stored_at.is_not(None))
    stored = {row.id: StoredPart(row.id, row.bytes, row.sha256) for row in await session.scalars(query)}
    for place, part_id in enumerate(ids):
        if part_id not in stored:
            raise InvalidRequest(
                f"'part_ids.{place}' is not a part of upload '{upload.id}'.", code="invalid_part", param="part_ids"
            )
    return [stored[part_id] for part_id in ids]


def _require_whole(upload: UploadRow, parts: list[StoredPart]) -> None:
    total = sum(part.bytes for part in parts)
    if total != upload.bytes:
        raise InvalidRequest(
            f"The parts have {total} bytes together, but the upload was created for {upload.bytes}.",
            code="invalid_bytes",
            param="part_ids",
        )


async def _completed(session: TenantSession, upload: UploadRow, request: CompleteUpload) -> Completed | None:
    if upload.status != "completed":
        return None
    if upload.part_ids != request.part_ids:
        raise InvalidRequest(f"Upload '{upload.id}' was completed with other parts.", code="upload_completed")
    file = await session.scalar(select(FileRow).where(FileRow.id == upload.file_id))
    assert file is not None
    return upload, file


async def _begin(session: TenantSession, upload: UploadRow, request: CompleteUpload) -> Completed:
    """Leaves the rest to `background`."""
    new = NewFile(upload.filename, upload.purpose, upload.bytes, "", status="uploaded")
    file_id = await reservation.insert_reserved(session, session.project_id, new)
    file = await reservation.publish(session, file_id, lifetime_of(upload.purpose, upload.lifetime_seconds))
    await _mark(session, upload, request, file_id)
    return upload, file


async def _finish(resources: Resources, tenant: Tenant, assembly: Assembly, request: CompleteUpload) -> Completed:
    """Raises InvalidRequest where the content is refused; the reservation is given up with every failure."""
    try:
        content = await _content(resources, assembly, request)
        async with resources.database.tenant(tenant.project_id) as session:
            return await _publish(session, assembly, request, content)
    except BaseException:
        # Where the database is away, the reservation ends by itself.
        with contextlib.suppress(DatabaseUnavailable):
            async with resources.database.tenant(tenant.project_id) as session:
                await reservation.drop(session, assembly.file_id)
        raise


async def _content(resources: Resources, assembly: Assembly, request: CompleteUpload) -> Content | None:
    """None where the parts are gone, as they are once somebody else has completed or ended the upload."""
    try:
        content = await in_thread(lambda stop: assembly.run(resources.store, stop))
    except ObjectMissing:
        return None
    except Refused as refused:
        content = refused.content
    refuse_bad(assembly.upload.purpose, content)
    require_md5(content, request.md5)
    return content


def require_md5(content: Content, md5: str | None) -> None:
    if md5 is not None and content.md5 != md5.lower():
        raise InvalidRequest(
            f"The parts together have the MD5 {content.md5}, not {md5}; send them again or in another order.",
            code="md5_mismatch",
            param="md5",
        )


async def _publish(
    session: TenantSession, assembly: Assembly, request: CompleteUpload, content: Content | None
) -> Completed:
    upload = await find(session, assembly.upload.id, hold=True)
    before = await _completed(session, upload, request)
    if before is not None:
        await reservation.drop(session, assembly.file_id)
        return before
    if content is None or upload.status != "pending":
        await require_pending(session, upload)
        raise InvalidRequest(f"Upload '{upload.id}' ended meanwhile; create another one.", code="upload_ended")
    lifetime = lifetime_of(upload.purpose, upload.lifetime_seconds)
    new = described(upload.filename, upload.purpose, content)
    file = await reservation.publish(session, assembly.file_id, lifetime, new)
    if content.findings is not None:
        await reports.keep(session, session.project_id, content.sha256, upload.purpose, content.findings)
    upload.assembled_at = await session.scalar(select(func.now()))
    await _mark(session, upload, request, assembly.file_id)
    return upload, file


async def _mark(session: TenantSession, upload: UploadRow, request: CompleteUpload, file_id: FileId) -> None:
    upload.status, upload.file_id = "completed", file_id
    upload.part_ids, upload.md5 = request.part_ids, request.md5
    await session.flush()
    await audit.note(session, "file.created", file_id, purpose=upload.purpose, bytes=upload.bytes, upload=upload.id)
