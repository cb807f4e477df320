"""The files routes, at OpenAI's addresses."""

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.files import lookup, validation
from service.files.schemas import File, FileDeleted, FilePage, Validation
from service.files.upload import take_upload
from service.idempotency.answers import Replayed
from service.idempotency.route import replay
from service.listing import Cursor, Order, page
from service.resources import CurrentResources
from service.tenants.auth import CurrentTenant, TenantTransaction

router = APIRouter(prefix="/v1/files", tags=["files"])

FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {
                            "type": "string",
                            "enum": ["fine-tune", "batch", "user_data", "assistants", "vision", "evals"],
                        },
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                }
            }
        },
    }
}

BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}


@router.post("", openapi_extra=FORM, response_model=File)
async def create_file(request: Request, tenant: CurrentTenant, resources: CurrentResources) -> File | Response:
    """Takes a file whole, up to 512 MB; larger ones go through uploads."""
    try:
        return await take_upload(request, resources, tenant)
    except Replayed as answered:
        return replay(answered)


@router.get("")
async def list_files(
    session: TenantTransaction,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10000)] = 10000,
    order: Order = "desc",
    after: str | None = None,
) -> FilePage:
    """The project's files."""
    rows = await lookup.list_files(session, Cursor(after=after, limit=limit, order=order), purpose)
    return page(rows, limit, File.of)


@router.get("/{file_id}")
async def get_file(file_id: str, session: TenantTransaction) -> File:
    """One file."""
    return File.of(await lookup.find_file(session, file_id))


@router.delete("/{file_id}")
async def delete_file(file_id: str, session: TenantTransaction) -> FileDeleted:
    """Deletes a file. Jobs that read it already go on."""
    await lookup.delete_file(session, file_id)
    return FileDeleted(id=file_id)


@router.get("/{file_id}/validation")
async def get_validation(
    file_id: str, tenant: CurrentTenant, resources: CurrentResources, compare: str | None = None
) -> Validation:
    """Problems by line, lengths, duplicates and, with `compare`, which examples are in that other file too."""
    found = await validation.validate(resources, tenant, file_id, compare)
    return Validation.of(found.row, found.findings, compare, found.base)


@router.get("/{file_id}/content", response_class=StreamingResponse, responses=BYTES)
async def get_content(file_id: str, tenant: CurrentTenant, resources: CurrentResources) -> StreamingResponse:
    """The file's bytes."""
    row, pieces = await lookup.open_file(resources, tenant, file_id)
    headers = {
        "content-length": str(row.bytes),
        "content-disposition": f"attachment; filename*=utf-8''{quote(row.filename)}",
    }
    return StreamingResponse(pieces, media_type="application/octet-stream", headers=headers)
