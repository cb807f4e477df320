"""HTTP routes of registered adapters and their versions, for tenants, and of permissions, for administrators."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from service.adapters.removal import delete_objects
from service.adapters.schemas import Grant
from service.db import TenantSession
from service.idempotency.route import IdempotentRoute
from service.listing import Cursor, Order, Page, page
from service.registry import alias_routes, catalog, permissions, sources, versions, views
from service.registry.bodies import AddVersion, ChangeAdapter, CheckpointSource, CreateAdapter, JobSource, ModelSource
from service.registry.residency import residency, version_rows
from service.registry.schemas import (
    Adapter,
    AdapterDeleted,
    AdapterPermission,
    AdapterPermissionDeleted,
    Provenance,
    Version,
    VersionDeleted,
    VersionResidency,
)
from service.registry.sources import Made
from service.resources import ControlTransaction, CurrentResources
from service.tenants.auth import CurrentTenant, TenantTransaction, require_admin

router = APIRouter(prefix="/v1/adapters", tags=["adapters"], route_class=IdempotentRoute)

Limit = Annotated[int, Query(ge=1, le=100)]
Number = Annotated[str, Path(pattern=r"^v?[1-9][0-9]{0,8}$", description="`7` or `v7`.")]
DAY = 86_400


def _number(version: str) -> int:
    return int(version.removeprefix("v"))


async def _made(session: TenantSession, source: JobSource | CheckpointSource | ModelSource) -> Made:
    match source:
        case JobSource():
            return await sources.of_job(session, source.job_id)
        case CheckpointSource():
            return await sources.of_checkpoint(session, source.checkpoint_id)
        case ModelSource():
            return await sources.of_model(session, source.model)


async def _added(
    session: TenantSession, tenant: CurrentTenant, adapter: str, source: JobSource | CheckpointSource | ModelSource
) -> Version:
    made = await _made(session, source)
    row = await versions.add(
        session,
        session.project_id,
        adapter,
        made.source,
        artifact=made.artifact,
        provenance=made.provenance,
        evaluation=made.evaluation,
        create_missing=False,
        actor=tenant.key_id,
    )
    return await views.version(session, adapter, row)


@router.post("")
async def create_adapter(
    body: CreateAdapter, resources: CurrentResources, tenant: CurrentTenant, session: TenantTransaction
) -> Adapter:
    """Registers a name, perhaps with its first version, which then becomes its alias `default`."""
    row = await catalog.create(session, resources, body.name, body.description, body.metadata or {})
    if body.origin is not None:
        await _added(session, tenant, row.name, body.origin)
    return await views.adapter(session, row)


@router.get("")
async def list_adapters(
    session: TenantTransaction,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "desc",
    include_deleted: bool = False,
) -> Page[Adapter]:
    """The project's adapters, newest first; those that can be restored only where asked for."""
    rows = await catalog.list_adapters(session, Cursor(after=after, limit=limit, order=order), include_deleted)
    shown = await views.adapters(session, rows)
    return page(rows, limit, lambda row: shown[row.id])


@router.get("/{adapter}")
async def retrieve_adapter(adapter: str, session: TenantTransaction) -> Adapter:
    """One adapter with its aliases."""
    return await views.adapter(session, await catalog.find(session, adapter))


@router.patch("/{adapter}")
async def change_adapter(adapter: str, body: ChangeAdapter, session: TenantTransaction) -> Adapter:
    """Changes description and metadata."""
    return await views.adapter(session, await catalog.change(session, adapter, body.values()))


@router.delete("/{adapter}")
async def delete_adapter(adapter: str, resources: CurrentResources, session: TenantTransaction) -> AdapterDeleted:
    """Takes an adapter away with all its versions and aliases. For some days it can be restored and keeps its name."""
    shown = await views.adapter(session, await catalog.delete(session, adapter))
    purged = (shown.deleted_at or 0) + round(resources.settings.deleted_adapter_days * DAY)
    return AdapterDeleted(id=shown.id, name=shown.name, purged_at=purged)


@router.post("/{adapter}/restore")
async def restore_adapter(adapter: str, session: TenantTransaction) -> Adapter:
    """Brings a deleted adapter back as it was."""
    return await views.adapter(session, await catalog.restore(session, adapter))


@router.post("/{adapter}/versions")
async def add_version(adapter: str, body: AddVersion, tenant: CurrentTenant, session: TenantTransaction) -> Version:
    """Makes the next version of a job's model, of a checkpoint's, or of a model by any of its names."""
    return await _added(session, tenant, adapter, body.source)


@router.get("/{adapter}/versions")
async def list_versions(
    adapter: str, session: TenantTransaction, after: str | None = None, limit: Limit = 20, order: Order = "desc"
) -> Page[Version]:
    """An adapter's versions, newest first."""
    registered = await catalog.find(session, adapter)
    rows = await versions.list_versions(session, registered, Cursor(after=after, limit=limit, order=order))
    shown = await views.listed(session, adapter, rows)
    return page(rows, limit, lambda row: shown[row.id])


@router.get("/{adapter}/versions/{version}")
async def retrieve_version(adapter: str, version: Number, session: TenantTransaction) -> Version:
    """One version."""
    registered = await catalog.find(session, adapter)
    return await views.version(session, adapter, await versions.find(session, registered, _number(version)))


@router.delete("/{adapter}/versions/{version}")
async def delete_version(
    adapter: str, version: Number, resources: CurrentResources, tenant: CurrentTenant
) -> VersionDeleted:
    """Deletes a version that no alias sends anything to, and its files where nothing else needs them."""
    async with resources.database.tenant(tenant.project_id) as session:
        row, unneeded = await versions.delete(session, adapter, _number(version))
    if unneeded is not None:
        await delete_objects(resources.store, tenant.project_id, unneeded)
    return VersionDeleted(id=row.id, adapter=adapter, version=row.number)


@router.get("/{adapter}/versions/{version}/provenance")
async def retrieve_provenance(adapter: str, version: Number, session: TenantTransaction) -> Provenance:
    """What a version was made of and how it did: job, data hashes, seed, hyperparameters, base, files, evaluations."""
    registered = await catalog.find(session, adapter)
    return await views.provenance(session, adapter, await versions.find(session, registered, _number(version)))


@router.post("/{adapter}/versions/{version}/warm")
async def warm_version(adapter: str, version: Number, session: TenantTransaction) -> Version:
    """Asks for a version to be loaded where its next request will go. A hint that nothing waits for."""
    return await views.version(session, adapter, await versions.warm(session, adapter, _number(version)))


@router.post("/{adapter}/versions/{version}/pin")
async def pin_version(
    adapter: str, version: Number, resources: CurrentResources, session: TenantTransaction
) -> Version:
    """Asks for a version to be kept loaded whether it is used or not."""
    most = resources.settings.max_pinned_versions
    return await views.version(session, adapter, await versions.pin(session, adapter, _number(version), most))


@router.delete("/{adapter}/versions/{version}/pin")
async def unpin_version(adapter: str, version: Number, session: TenantTransaction) -> Version:
    """Takes a pin back."""
    return await views.version(session, adapter, await versions.unpin(session, adapter, _number(version)))


@router.get("/{adapter}/residency")
async def list_residency(adapter: str, resources: CurrentResources, tenant: CurrentTenant) -> Page[VersionResidency]:
    """Which replicas hold which of the newest versions, and in which tier of memory."""
    async with resources.database.tenant(tenant.project_id) as session:
        base, rows = await version_rows(session, adapter)
    found = await residency(resources, base, rows)
    return page(found, len(found), lambda each: VersionResidency.of(adapter, each))


router.include_router(alias_routes.router)


@router.post("/{adapter}/permissions", dependencies=[Depends(require_admin)])
async def grant_adapter_permissions(
    adapter: str, body: Grant, resources: CurrentResources, session: ControlTransaction
) -> Page[AdapterPermission]:
    """Lets other projects use an adapter, named here by its id, or by its name where only one project has it."""
    organization = resources.settings.organization_name
    rows = await permissions.grant(session, organization, adapter, body.project_ids)
    return page(rows, len(rows), AdapterPermission.of)


@router.get("/{adapter}/permissions", dependencies=[Depends(require_admin)])
async def list_adapter_permissions(
    adapter: str,
    resources: CurrentResources,
    session: ControlTransaction,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "desc",
) -> Page[AdapterPermission]:
    """Which other projects may use an adapter."""
    cursor = Cursor(after=after, limit=limit, order=order)
    organization = resources.settings.organization_name
    rows = await permissions.list_permissions(session, organization, adapter, cursor)
    return page(rows, limit, AdapterPermission.of)


@router.delete("/{adapter}/permissions/{permission_id}", dependencies=[Depends(require_admin)])
async def revoke_adapter_permission(
    adapter: str, permission_id: str, resources: CurrentResources, session: ControlTransaction
) -> AdapterPermissionDeleted:
    """Takes a permission back; requests in flight may finish."""
    await permissions.revoke(session, resources.settings.organization_name, adapter, permission_id)
    return AdapterPermissionDeleted(id=permission_id)
