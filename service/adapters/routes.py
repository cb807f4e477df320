"""HTTP routes of models, for tenants, and of adapter sources, for replicas."""

from fastapi import APIRouter, Depends

from service.adapters import registry, removal
from service.adapters.schemas import ModelDeleted, ModelList, ModelObject
from service.adapters.sources import source_of
from service.contracts.base_model import BaseModelInfo
from service.contracts.replica import AdapterSource
from service.resources import CurrentResources, Resources
from service.tenants.auth import CurrentTenant, Tenant, TenantTransaction, require_replica

router = APIRouter()


def _own(tenant: Tenant, model: registry.Model) -> ModelObject:
    return ModelObject(id=model.name, created=int(model.created_at.timestamp()), owned_by=tenant.organization_name)


def _base(resources: Resources, base: BaseModelInfo) -> ModelObject:
    # The service does not know since when an operator offers a base; 0 says so without breaking clients' types.
    return ModelObject(id=base.name, created=0, owned_by=resources.settings.organization_name)


@router.get("/v1/models", tags=["models"])
async def list_models(resources: CurrentResources, tenant: CurrentTenant, session: TenantTransaction) -> ModelList:
    """The base models and the caller's own fine-tuned models, newest first."""
    own = await registry.list_models(session, tenant.project_id)
    bases = [_base(resources, base) for base in resources.settings.base_models]
    return ModelList(data=[*bases, *(_own(tenant, model) for model in own)])


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
    return _own(tenant, found)


@router.delete("/v1/models/{model:path}", tags=["models"])
async def delete_model(model: str, resources: CurrentResources, tenant: CurrentTenant) -> ModelDeleted:
    """Deletes a fine-tuned model and, with its last name, the adapter's files."""
    await removal.remove(resources, tenant.project_id, model)
    return ModelDeleted(id=model)


@router.get("/internal/adapters/{adapter_id}", dependencies=[Depends(require_replica)], tags=["internal"])
async def adapter_source(adapter_id: str, resources: CurrentResources) -> AdapterSource:
    """Where a replica may read an adapter from, for a few minutes."""
    return await source_of(resources, adapter_id)
