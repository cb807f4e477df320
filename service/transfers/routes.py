"""HTTP routes of imports and exports, for tenants."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from fastapi.responses import Response, StreamingResponse

from service.idempotency.route import IdempotentRoute
from service.listing import Cursor, Order, Page, page
from service.resources import CurrentResources
from service.tenants.auth import CurrentTenant, TenantTransaction
from service.transfers import buckets, exports, imports, opening
from service.transfers.schemas import CreateExport, CreateImport, Export, Import

router = APIRouter(prefix="/v1/adapters", tags=["adapters"], route_class=IdempotentRoute)

Limit = Annotated[int, Query(ge=1, le=100)]
Number = Annotated[str, Path(pattern=r"^v?[1-9][0-9]{0,8}$", description="`7` or `v7`.")]

BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}


# Asked before the transaction of the change, in which nobody waits for a store.
async def _located(body: CreateImport, resources: CurrentResources, tenant: CurrentTenant) -> buckets.Located | None:
    return await buckets.locate(resources, tenant.project_id, body.source) if body.source is not None else None


async def _exportable(
    adapter: str, version: Number, resources: CurrentResources, tenant: CurrentTenant
) -> exports.Exportable:
    return await exports.exportable(resources, tenant.project_id, adapter, int(version.removeprefix("v")))


@router.post("/imports")
async def create_import(
    body: CreateImport,
    resources: CurrentResources,
    tenant: CurrentTenant,
    located: Annotated[buckets.Located | None, Depends(_located)],
    session: TenantTransaction,
) -> Import:
    """Begins to make a version of an adapter that PEFT wrote elsewhere."""
    return Import.of(await imports.create(session, resources, tenant.key_id, body, located))


@router.get("/imports")
async def list_imports(
    session: TenantTransaction, after: str | None = None, limit: Limit = 20, order: Order = "desc"
) -> Page[Import]:
    """The project's imports."""
    rows = await opening.list_imports(session, Cursor(after=after, limit=limit, order=order))
    return page(rows, limit, Import.of)


@router.get("/imports/{import_id}")
async def retrieve_import(import_id: str, session: TenantTransaction) -> Import:
    """One import."""
    return Import.of(await opening.find(session, import_id, opening.IMPORTS))


@router.post("/{adapter}/versions/{version}/exports")
async def create_export(
    adapter: str,
    version: Number,
    body: CreateExport,
    resources: CurrentResources,
    tenant: CurrentTenant,
    found: Annotated[exports.Exportable, Depends(_exportable)],
    session: TenantTransaction,
) -> Export:
    """Gives a version's weights out: as PEFT's files at once, or merged into the base once a worker has done it."""
    return Export.of(await exports.create(session, resources, tenant.key_id, found, body.format))


@router.get("/exports/{export_id}")
async def retrieve_export(export_id: str, session: TenantTransaction) -> Export:
    """One export."""
    return Export.of(await opening.find(session, export_id, opening.EXPORTS))


@router.get("/exports/{export_id}/files/{path:path}", response_class=StreamingResponse, responses=BYTES)
async def read_exported_file(export_id: str, path: str, resources: CurrentResources, tenant: CurrentTenant) -> Response:
    """The bytes of one of an export's files."""
    size, content = await exports.open_file(resources, tenant, export_id, path)
    headers = {"content-length": str(size), "content-disposition": f"attachment; filename={path}"}
    if isinstance(content, bytes):
        return Response(content, media_type="application/octet-stream", headers=headers)
    return StreamingResponse(content, media_type="application/octet-stream", headers=headers)
