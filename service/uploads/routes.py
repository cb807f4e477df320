"""The uploads routes, at OpenAI's addresses: large files in parts."""

from typing import Any

from fastapi import APIRouter, Request, Response

from service.idempotency.answers import Replayed
from service.idempotency.route import IdempotentRoute, replay
from service.resources import CurrentResources
from service.tenants.auth import CLAIMED, CurrentTenant, TenantTransaction
from service.uploads import complete, pending
from service.uploads.parts import take_part
from service.uploads.schemas import CompleteUpload, CreateUpload, Part, Upload

router = APIRouter(prefix="/v1/uploads", tags=["uploads"], route_class=IdempotentRoute)

FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


@router.post("")
async def create_upload(body: CreateUpload, resources: CurrentResources, session: TenantTransaction) -> Upload:
    """Begins a file that arrives in parts; an hour later it is over."""
    return Upload.of(await pending.create(session, resources.settings, body), "pending")


@router.post("/{upload_id}/parts", openapi_extra=FORM, response_model=Part)
async def create_part(
    upload_id: str, request: Request, tenant: CurrentTenant, resources: CurrentResources
) -> Part | Response:
    """Takes one part, in any order and beside others."""
    try:
        return await take_part(request, resources, tenant, upload_id)
    except Replayed as answered:
        return replay(answered)


@router.post("/{upload_id}/complete", dependencies=[CLAIMED])
async def complete_upload(
    upload_id: str, body: CompleteUpload, tenant: CurrentTenant, resources: CurrentResources
) -> Upload:
    """Makes a file of the parts, in the order in which they are named."""
    row, file = await complete.complete(resources, tenant, upload_id, body)
    return Upload.of(row, "completed", file)


@router.post("/{upload_id}/cancel")
async def cancel_upload(upload_id: str, session: TenantTransaction) -> Upload:
    """Ends an upload; its parts are thrown away."""
    return Upload.of(await pending.cancel(session, upload_id), "cancelled")
