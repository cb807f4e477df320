"""Uploads before they are files: beginning one, finding it, giving it up. After LIFETIME a pending one is over."""

from datetime import timedelta

from sqlalchemy import func, select

from service.contracts.ids import new_upload_id
from service.db import TenantSession
from service.errors import InvalidRequest, NotFound
from service.files.content import require_size
from service.files.forms import safe_name
from service.files.quota import require_room
from service.settings import ServiceSettings
from service.uploads.models import UploadRow
from service.uploads.schemas import CreateUpload

LIFETIME = timedelta(hours=1)


async def create(session: TenantSession, settings: ServiceSettings, request: CreateUpload) -> UploadRow:
    require_size(request.purpose, request.bytes, settings.max_upload_bytes, "bytes")
    await require_room(session, request.bytes, settings.max_storage_bytes)
    row = UploadRow(
        id=new_upload_id(),
        project_id=session.project_id,
        filename=safe_name(request.filename),
        purpose=request.purpose,
        mime_type=request.mime_type,
        bytes=request.bytes,
        lifetime_seconds=request.expires_after.seconds if request.expires_after else None,
        expires_at=func.now() + LIFETIME,
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    return row


async def find(session: TenantSession, upload_id: str, *, hold: bool = False) -> UploadRow:
    """The caller's upload, with `hold` not changed by anybody else until the transaction ends. Raises NotFound."""
    query = select(UploadRow).where(UploadRow.id == upload_id)
    row = await session.scalar(query.with_for_update() if hold else query)
    if row is None:
        raise NotFound(f"No such Upload object: {upload_id}", param="upload_id")
    return row


async def cancel(session: TenantSession, upload_id: str) -> UploadRow:
    """Gives up a pending upload; once cancelled it may be cancelled again."""
    row = await find(session, upload_id, hold=True)
    if row.status != "cancelled":
        await require_pending(session, row)
        row.status = "cancelled"
        await session.flush()
    return row


async def require_pending(session: TenantSession, row: UploadRow) -> None:
    """Raises InvalidRequest where nothing more can be done with the upload."""
    status = row.status
    if status == "pending" and await expired(session, row):
        status = "expired"
    if status != "pending":
        raise InvalidRequest(f"Upload '{row.id}' is {status}; create another one.", code=f"upload_{status}")


async def expired(session: TenantSession, row: UploadRow) -> bool:
    """By the database's clock."""
    query = select(UploadRow.id).where(UploadRow.id == row.id, UploadRow.expires_at <= func.now())
    return await session.scalar(query) is not None
