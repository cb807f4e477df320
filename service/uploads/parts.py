"""Taking one part of an upload in. Parts may come at once and in any order; `complete` says which ones and in which.

A part is a row, then an object, then the row's `stored_at`: killed in between it is never used, and the sweep removes
it with the rest of the upload. So does a part whose answer was lost and that was sent again.
"""

import asyncio
import hashlib
from typing import BinaryIO

from fastapi import Request
from sqlalchemy import func, select, update

from service.contracts.ids import ProjectId, UploadId, new_part_id
from service.contracts.layout import upload_prefix
from service.db import TenantSession
from service.errors import InvalidRequest, PayloadTooLarge
from service.files.checking import in_thread
from service.files.content import PIECE_BYTES
from service.files.forms import file_in, form_of
from service.idempotency.answers import Replayed
from service.idempotency.attempt import Attempt
from service.idempotency.route import Attempts
from service.resources import Resources
from service.tenants.auth import Tenant
from service.uploads.models import PartRow, UploadRow
from service.uploads.pending import find, require_pending
from service.uploads.schemas import MAX_PARTS, Part

SPARE = 2
"""How often each byte of an upload may be sent, for parts that are sent again."""


async def take_part(request: Request, resources: Resources, tenant: Tenant, upload_id: str) -> Part:
    """Raises Replayed where the same request was answered before; what it stored then is no part."""
    await _require_pending(resources, tenant, upload_id)
    most = resources.settings.max_part_bytes
    async with form_of(request, tenant.project_id, "the field 'data'") as form:
        data, size = file_in(form, "data")
        if size > most:
            raise PayloadTooLarge(f"The part is larger than {most} bytes.", param="data")
        sha256 = await in_thread(lambda _: _digest(data.file))
        row = await _reserve(resources, tenant, upload_id, size, sha256, _attempt(request, sha256))
        key = part_key(tenant.project_id, upload_id, row.id)
        await asyncio.to_thread(resources.store.put_stream, key, data.file)
    try:
        return await _publish(resources, tenant, row, _attempt(request, sha256))
    except (InvalidRequest, Replayed):
        await asyncio.to_thread(resources.store.delete, [key])
        raise


def part_key(project: ProjectId, upload_id: str, part_id: str) -> str:
    return upload_prefix(project, UploadId(upload_id)) + part_id


def _attempt(request: Request, sha256: str) -> Attempt:
    """Told by what the part holds: each attempt of a client draws another boundary, so its bytes differ."""
    attempts: Attempts = request.app.state.attempts
    return attempts.of(request, bytes.fromhex(sha256))


async def _require_pending(resources: Resources, tenant: Tenant, upload_id: str) -> None:
    """Before the body is read."""
    async with resources.database.tenant(tenant.project_id) as session:
        await require_pending(session, await find(session, upload_id))


async def _reserve(
    resources: Resources, tenant: Tenant, upload_id: str, size: int, sha256: str, attempt: Attempt
) -> PartRow:
    async with resources.database.tenant(tenant.project_id) as session:
        # One that was answered is not stored again.
        await attempt.begin(session)
        upload = await find(session, upload_id, hold=True)
        await require_pending(session, upload)
        await _require_room(session, upload, size, resources.settings.max_part_bytes)
        row = PartRow(id=new_part_id(), project_id=tenant.project_id, upload_id=upload_id, bytes=size, sha256=sha256)
        session.add(row)
        await session.flush()
        await session.refresh(row)
        return row


async def _require_room(session: TenantSession, upload: UploadRow, size: int, part: int) -> None:
    query = select(func.count(), func.coalesce(func.sum(PartRow.bytes), 0)).where(PartRow.upload_id == upload.id)
    count, total = (await session.execute(query)).one()
    if count >= MAX_PARTS:
        raise InvalidRequest(f"An upload takes at most {MAX_PARTS} parts; send larger ones.", code="too_many_parts")
    if total + size > SPARE * upload.bytes + part:
        raise InvalidRequest(
            f"The parts of upload '{upload.id}' are far more than the {upload.bytes} bytes that it was created for.",
            code="too_many_bytes",
            param="data",
        )


async def _publish(resources: Resources, tenant: Tenant, row: PartRow, attempt: Attempt) -> Part:
    """Raises InvalidRequest where it is no part: the sweep has removed it, or the upload was cancelled, meanwhile."""
    async with resources.database.tenant(tenant.project_id) as session:
        await attempt.begin(session)
        # Held, so that the sweep either sees the part or has been here already.
        upload = await find(session, row.upload_id, hold=True)
        if upload.status == "cancelled" or upload.purged_at is not None:
            raise InvalidRequest(f"Upload '{upload.id}' ended meanwhile; create another one.", code="upload_ended")
        await session.execute(update(PartRow).where(PartRow.id == row.id).values(stored_at=func.now()))
        part = Part.of(row)
        await attempt.record(200, part.model_dump_json().encode())
        return part


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while piece := file.read(PIECE_BYTES):
        digest.update(piece)
    file.seek(0)
    return digest.hexdigest()
