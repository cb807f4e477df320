"""Finding, listing, reading and deleting files. Deletion hides the row; `sweep` removes the bytes later."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterator, Sequence

from sqlalchemy import func, select, update

from service.contracts import layout
from service.contracts.ids import FileId
from service.contracts.store import StoreError
from service.db import TenantSession
from service.errors import NotFound, Unavailable
from service.files.models import FileRow
from service.listing import Cursor, rows_of
from service.resources import Resources
from service.tenants import audit
from service.tenants.auth import Tenant


async def find_file(session: TenantSession, file_id: str) -> FileRow:
    """The caller's file. Raises NotFound for one that never was, is deleted or expired, or is somebody else's."""
    row = await session.scalar(select(FileRow).where(FileRow.id == file_id, FileRow.live()))
    if row is None:
        raise _no_such_file(file_id)
    return row


async def list_files(session: TenantSession, cursor: Cursor, purpose: str | None) -> Sequence[FileRow]:
    query = select(FileRow).where(FileRow.live())
    if purpose is not None:
        query = query.where(FileRow.purpose == purpose)
    begin = select(FileRow.created_at, FileRow.id).where(FileRow.id == cursor.after)
    return await rows_of(session, query, (FileRow.created_at, FileRow.id), cursor, begin)


async def delete_file(session: TenantSession, file_id: str) -> None:
    deleted = update(FileRow).where(FileRow.id == file_id, FileRow.live()).values(deleted_at=func.now())
    if await session.scalar(deleted.returning(FileRow.id)) is None:
        raise _no_such_file(file_id)
    await audit.note(session, "file.deleted", file_id)


async def open_file(resources: Resources, tenant: Tenant, file_id: str) -> tuple[FileRow, AsyncGenerator[bytes]]:
    """The row and the bytes, which end before their last piece where they are not what was uploaded."""
    async with resources.database.tenant(tenant.project_id) as session:
        row = whole(await find_file(session, file_id))
    key = layout.file_key(tenant.project_id, FileId(row.id))
    return row, _verified(await asyncio.to_thread(resources.store.open, key), row)


def whole(row: FileRow) -> FileRow:
    """The same, where its bytes are there already. Raises Unavailable."""
    if row.status == "uploaded":
        raise Unavailable(
            f"File '{row.id}' is still being put together; ask again when its status is 'processed'.",
            code="file_not_ready",
            retry_after=5,
        )
    return row


async def _verified(pieces: Iterator[bytes], row: FileRow) -> AsyncGenerator[bytes]:
    digest, held = hashlib.sha256(), b""

    def step() -> bytes:
        piece = next(pieces, b"")
        digest.update(piece)
        return piece

    while piece := await asyncio.to_thread(step):
        if held:
            yield held
        held = piece
    if digest.hexdigest() != row.sha256:
        raise StoreError(f"the stored bytes of {row.id} are not those that were uploaded")
    yield held


def _no_such_file(file_id: str) -> NotFound:
    return NotFound(f"No such File object: {file_id}", param="id")
