"""Taking a file in: form, checks, store, row. An upload either ends as a file with a row or leaves nothing behind.

Its row is a reservation until the store has the bytes.
"""

import asyncio
import hashlib
import json
import threading

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from service.contracts import layout
from service.contracts.ids import FileId
from service.files import reports, reservation
from service.files.checking import in_thread
from service.files.content import PIECE_BYTES, Content, described, examining, refuse_bad, require_size
from service.files.forms import FORM_BYTES, announced, file_in, form_of, safe_name
from service.files.quota import require_room
from service.files.schemas import File, UploadFields
from service.idempotency.answers import Replayed
from service.idempotency.attempt import Attempt
from service.idempotency.route import Attempts
from service.resources import Resources
from service.tenants import audit
from service.tenants.auth import Tenant


async def take_upload(request: Request, resources: Resources, tenant: Tenant) -> File:
    """Reads the form, checks the file and stores it. Whatever is wrong with it is said before anything is stored.

    Raises Replayed where the same request was answered before.
    """
    await _require_room_ahead(request, resources, tenant)
    async with form_of(request, tenant.project_id, "the fields 'purpose' and 'file'") as form:
        fields = _fields(form)
        upload, size = file_in(form, "file")
        require_size(fields.purpose, size, resources.settings.max_file_bytes, "file")
        content = await in_thread(lambda stop: _examined(upload, size, fields.purpose, resources, stop))
        refuse_bad(fields.purpose, content)
        new = described(safe_name(upload.filename or ""), fields.purpose, content)
        async with resources.database.tenant(tenant.project_id) as session:
            await require_room(session, size, resources.settings.max_storage_bytes)
            file_id = await reservation.insert_reserved(session, tenant.project_id, new)
        await asyncio.to_thread(resources.store.put_stream, layout.file_key(tenant.project_id, file_id), upload.file)
    attempt = _attempt(request, fields, new.filename, content)
    return await _publish(resources, tenant, file_id, fields, content, attempt)


async def _require_room_ahead(request: Request, resources: Resources, tenant: Tenant) -> None:
    """Before the body is read; what it really holds is looked at again."""
    least = (announced(request) or 0) - FORM_BYTES
    if least > 0:
        async with resources.database.tenant(tenant.project_id) as session:
            await require_room(session, least, resources.settings.max_storage_bytes)


def _fields(form: FormData) -> UploadFields:
    try:
        return UploadFields.model_validate({name: value for name, value in form.items() if isinstance(value, str)})
    except ValidationError as error:
        places = [{**problem, "loc": ("body", *(problem["loc"] or ("expires_after",)))} for problem in error.errors()]
        raise RequestValidationError(places) from error


def _examined(upload: UploadFile, size: int, purpose: str, resources: Resources, stop: threading.Event) -> Content:
    with examining(purpose, size, resources.settings.max_line_bytes, refusable=True) as examination:
        while not examination.refused and not stop.is_set() and (piece := upload.file.read(PIECE_BYTES)):
            examination.feed(piece)
        content = examination.finish()
    upload.file.seek(0)
    return content


def _attempt(request: Request, fields: UploadFields, filename: str, content: Content) -> Attempt:
    """Told by what the form says: each attempt of a client draws another boundary, so its bytes differ."""
    attempts: Attempts = request.app.state.attempts
    said = json.dumps([fields.model_dump(), filename, content.sha256])
    return attempts.of(request, hashlib.sha256(said.encode()).digest())


async def _publish(
    resources: Resources, tenant: Tenant, file_id: FileId, fields: UploadFields, content: Content, attempt: Attempt
) -> File:
    try:
        async with resources.database.tenant(tenant.project_id) as session:
            await attempt.begin(session)
            lifetime = reservation.lifetime_of(fields.purpose, fields.seconds)
            file = File.of(await reservation.publish(session, file_id, lifetime))
            await audit.note(session, "file.created", file_id, purpose=fields.purpose, bytes=content.size)
            if content.findings is not None:
                await reports.keep(session, tenant.project_id, content.sha256, fields.purpose, content.findings)
            await attempt.record(200, file.model_dump_json().encode())
            return file
    except Replayed:
        async with resources.database.tenant(tenant.project_id) as session:
            await reservation.drop(session, file_id)
        raise
