"""Taking a file in: form, checks, store, row. An upload either ends as a file with a row or leaves nothing behind.

The row is written twice: first as a reservation that nobody sees, then, once the store has the bytes, as a file. What
dies in between leaves a reservation, and `sweep` removes its object after RESERVED.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import PureWindowsPath
from typing import BinaryIO

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlalchemy import func, insert, update
from starlette.datastructures import FormData, UploadFile

from service.contracts import layout
from service.contracts.ids import FileId, ProjectId, new_file_id
from service.errors import InvalidRequest, PayloadTooLarge, Unavailable, UnsupportedMedia
from service.files.datasets import DatasetCheck, refusal
from service.files.models import FileRow
from service.files.schemas import UploadFields
from service.resources import Resources
from service.tenants.auth import Tenant

PIECE_BYTES = 256 << 10
"""Read and checked at a time: a few milliseconds during which the event loop's thread may have to wait."""
RESERVED = timedelta(hours=1)
FILENAME_LENGTH = 255


@dataclass(frozen=True)
class Checked:
    size: int
    sha256: str
    examples: int


async def take_upload(request: Request, resources: Resources, tenant: Tenant) -> FileRow:
    """Reads the form, checks the file and stores it. Whatever is wrong with it is said before anything is stored."""
    async with _form(request) as form:
        fields, upload = _parts(form)
        settings = resources.settings
        if (upload.size or 0) > settings.max_file_bytes:
            raise PayloadTooLarge(f"The file is larger than {settings.max_file_bytes} bytes.", param="file")
        dataset = DatasetCheck(settings.max_line_bytes) if fields.purpose == "fine-tune" else None
        checked = await _check(upload.file, dataset)
        file_id = await _reserve(resources, tenant.project_id, upload, fields, checked)
        await asyncio.to_thread(resources.store.put_stream, layout.file_key(tenant.project_id, file_id), upload.file)
    return await _publish(resources, tenant.project_id, file_id, fields.seconds)


@asynccontextmanager
async def _form(request: Request) -> AsyncGenerator[FormData]:
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise UnsupportedMedia("Send the file as multipart/form-data with the fields 'purpose' and 'file'.")
    try:
        # Parts above a megabyte lie in a temporary file, so memory does not grow with what is sent.
        form = await request.form(max_files=1, max_fields=8, max_part_size=4096)
    except OSError as error:
        raise Unavailable("The server has no room for this upload just now.", code="storage_unavailable") from error
    try:
        yield form
    finally:
        await form.close()


def _parts(form: FormData) -> tuple[UploadFields, UploadFile]:
    try:
        fields = UploadFields.model_validate({name: value for name, value in form.items() if isinstance(value, str)})
    except ValidationError as error:
        places = [{**problem, "loc": ("body", *(problem["loc"] or ("expires_after",)))} for problem in error.errors()]
        raise RequestValidationError(places) from error
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise InvalidRequest("Missing required parameter: 'file', a form part with a filename.", param="file")
    if not upload.size:
        raise InvalidRequest("The file is empty.", param="file", code="empty_file")
    return fields, upload


async def _check(file: BinaryIO, dataset: DatasetCheck | None) -> Checked:
    digest, size = hashlib.sha256(), 0

    def step() -> int:
        piece = file.read(PIECE_BYTES)
        digest.update(piece)
        if dataset is not None:
            dataset.feed(piece)
        return len(piece)

    while read := await asyncio.to_thread(step):
        size += read
        if dataset is not None and dataset.given_up:
            break
    if dataset is not None:
        dataset.finish()
        if dataset.problems:
            raise refusal(dataset)
    file.seek(0)
    return Checked(size, digest.hexdigest(), dataset.examples if dataset is not None else 0)


async def _reserve(
    resources: Resources, project: ProjectId, upload: UploadFile, fields: UploadFields, checked: Checked
) -> FileId:
    file_id = new_file_id()
    reservation = insert(FileRow).values(
        id=file_id,
        project_id=project,
        filename=_safe_name(upload.filename or ""),
        purpose=fields.purpose,
        bytes=checked.size,
        sha256=checked.sha256,
        status="processed",
        examples=checked.examples,
        deleted_at=func.now() + RESERVED,
    )
    async with resources.database.tenant(project) as session:
        await session.execute(reservation)
    return file_id


async def _publish(resources: Resources, project: ProjectId, file_id: FileId, lifetime: int | None) -> FileRow:
    expires_at = None if lifetime is None else func.now() + timedelta(seconds=lifetime)
    reserved = update(FileRow).where(FileRow.id == file_id, FileRow.purged_at.is_(None))
    published = reserved.values(deleted_at=None, created_at=func.now(), expires_at=expires_at).returning(FileRow)
    async with resources.database.tenant(project) as session:
        row = await session.scalar(published)
    if row is None:
        raise Unavailable("Storing the file took too long; upload it again.", code="storage_unavailable")
    return row


def _safe_name(given: str) -> str:
    """The last part of either kind of path, without what a terminal or a header would act on."""
    name = "".join(character for character in PureWindowsPath(given).name if character.isprintable())
    return name.strip()[:FILENAME_LENGTH] or "file"
