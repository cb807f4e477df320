"""The row of a file that is being stored, whoever brings it: the caller of an upload, or the service itself.

It is written twice: first as a reservation that nobody sees, then, once the store has the bytes, as a file. What dies
in between leaves a reservation, and `sweep` removes its object after RESERVED.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import func, insert, update
from sqlalchemy.ext.asyncio import AsyncSession

from service.contracts.ids import FileId, ProjectId, new_file_id
from service.errors import Unavailable
from service.files.models import FileRow
from service.resources import Resources

RESERVED = timedelta(hours=1)
BATCH_LIFETIME = timedelta(days=30)
"""What OpenAI gives files of batches that nobody gave another."""


@dataclass(frozen=True)
class NewFile:
    filename: str
    purpose: str
    size: int
    sha256: str
    status: Literal["uploaded", "processed", "error"] = "processed"
    status_details: str | None = None
    examples: int = 0
    example_format: str | None = None

    def values(self) -> dict[str, Any]:
        values = dict(vars(self))
        values["bytes"] = values.pop("size")
        return values


async def reserve(resources: Resources, project: ProjectId, new: NewFile) -> FileId:
    """A new id under whose key the bytes may now be stored."""
    async with resources.database.tenant(project) as session:
        return await insert_reserved(session, project, new)


async def insert_reserved(session: AsyncSession, project: ProjectId, new: NewFile) -> FileId:
    file_id = new_file_id()
    reserved = {"id": file_id, "project_id": project, "deleted_at": func.now() + RESERVED}
    await session.execute(insert(FileRow).values(**new.values(), **reserved))
    return file_id


async def publish(
    session: AsyncSession, file_id: FileId, lifetime: timedelta | None = None, new: NewFile | None = None
) -> FileRow:
    """Makes a reservation whose bytes are stored a file, `new` being what is known of it by now.

    Raises Unavailable where the bytes were swept away meanwhile.
    """
    expires_at = None if lifetime is None else func.now() + lifetime
    reserved = update(FileRow).where(FileRow.id == file_id, FileRow.purged_at.is_(None))
    values = {} if new is None else new.values()
    published = reserved.values(deleted_at=None, created_at=func.now(), expires_at=expires_at, **values)
    row = await session.scalar(published.returning(FileRow))
    if row is None:
        raise Unavailable("Storing the file took too long; try again.", code="storage_unavailable")
    return row


async def drop(session: AsyncSession, file_id: FileId) -> None:
    """Gives up a reservation, so that the next sweep removes what was stored under it."""
    reserved = update(FileRow).where(FileRow.id == file_id, FileRow.deleted_at > func.now())
    await session.execute(reserved.values(deleted_at=func.now()))


def lifetime_of(purpose: str, seconds: int | None) -> timedelta | None:
    """How long a file lives whose uploader asked for `seconds`, or for nothing."""
    if seconds is not None:
        return timedelta(seconds=seconds)
    return BATCH_LIFETIME if purpose == "batch" else None
