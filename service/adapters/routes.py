"""HTTP routes of models, for tenants, of permissions on them, for administrators, and of sources, for replicas."""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query

from service.adapters import aliases, permissions, registry, removal
from service.adapters.schemas import Grant, ModelDeleted, ModelList, ModelObject, Permission, PermissionDeleted
from service.adapters.sources import source_of
from service.contracts.base_model import BaseModelInfo
from service.contracts.replica import AdapterSource
from service.idempotency.route import IdempotentRoute
from service.listing import Cursor, Order, Page, page
from service.resources import ControlTransaction, CurrentResources, Resources
from service.tenants.auth import CurrentTenant, Tenant, TenantTransaction, require_admin, require_replica

router = APIRouter(route_class=IdempotentRoute)


def _own(tenant: Tenant, name: str, created_at: datetime) -> ModelObject:
    return ModelObject(id=name, created=int(created_at.timestamp()), owned_by=tenant.organization_name)


def _base(resources: Resources, base: BaseModelInfo) -> ModelObject:
    # The service does not know since when an operator offers a base; 0 says so without breaking clients' types.
    return ModelObject(id=base.name, created=0, owned_by=resources.settings.organization_name)


@router.get("/v1/models", tags=["models"])
async def list_models(resources: CurrentResources, tenant: CurrentTenant, session: TenantTransaction) -> ModelList:
    """The base models, the caller's fine-tuned models, newest first, and the names of its registered adapters."""
    models = await registry.list_models(session, tenant.project_id)
    names = [(model.name, model.created_at) for model in models]
    names += await aliases.list_names(session, tenant.project_id)
    bases = [_base(resources, base) for base in resources.settings.base_models]
    return ModelList(data=[*bases, *(_own(tenant, name, created_at) for name, created_at in names)])


@router.get("/v1/models/{model:path}", tags=["models"])
async def retrieve_model(
    model: str, resources: CurrentResources, tenant: CurrentTenant, session: TenantTransaction
) -> ModelObject:
    """One model that the caller may use."""
    base = resources.base_model(model)
    if base is not None:
        return _base(resources, base)
    found = await registry.find(session, tenant.project_id, model)
    if found is None:
        raise removal.not_found(model)
    return _own(tenant, model, found.created_at)


@router.delete("/v1/models/{model:path}", tags=["models"])
async def delete_model(model: str, resources: CurrentResources, tenant: CurrentTenant) -> ModelDeleted:
    """Deletes a fine-tuned model and, with its last name, the adapter's files."""
    await removal.remove(resources, tenant.project_id, model)
    return ModelDeleted(id=model)


PERMISSIONS = "/v1/fine_tuning/checkpoints/{fine_tuned_model_checkpoint:path}/permissions"
ORDERS: dict[str, Order] = {"ascending": "asc", "descending": "desc"}


@router.post(PERMISSIONS, dependencies=[Depends(require_admin)], tags=["fine-tuning"])
async def grant_permissions(
    fine_tuned_model_checkpoint: str, body: Grant, resources: CurrentResources, session: ControlTransaction
) -> Page[Permission]:
    """Lets other projects use a model."""
    organization = resources.settings.organization_name
    rows = await permissions.grant(session, organization, fine_tuned_model_checkpoint, body.project_ids)
    return page(rows, len(rows), Permission.of)


@router.get(PERMISSIONS, dependencies=[Depends(require_admin)], tags=["fine-tuning"])
async def list_permissions(
    fine_tuned_model_checkpoint: str,
    resources: CurrentResources,
    session: ControlTransaction,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
    order: Literal["ascending", "descending"] = "descending",
    project_id: str | None = None,
) -> Page[Permission]:
    """Which projects may use a model."""
    cursor = Cursor(after=after, limit=limit, order=ORDERS[order])
    organization = resources.settings.organization_name
    found = await permissions.list_permissions(session, organization, fine_tuned_model_checkpoint, cursor, project_id)
    return page(found, limit, Permission.of)


@router.delete(PERMISSIONS + "/{permission_id}", dependencies=[Depends(require_admin)], tags=["fine-tuning"])
async def revoke_permission(
    fine_tuned_model_checkpoint: str, permission_id: str, resources: CurrentResources, session: ControlTransaction
) -> PermissionDeleted:
    """Takes a permission back; requests in flight may finish."""
    organization = resources.settings.organization_name
    await permissions.revoke(session, organization, fine_tuned_model_checkpoint, permission_id)
    return PermissionDeleted(id=permission_id)


@router.get("/internal/adapters/{adapter_id}", dependencies=[Depends(require_replica)], tags=["internal"])
async def adapter_source(adapter_id: str, resources: CurrentResources) -> AdapterSource:
    """Where a replica may read an adapter from, for a few minutes."""
    return await source_of(resources, adapter_id)
