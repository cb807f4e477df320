"""Taking a model away: the name first, then, when it was the adapter's last, the objects.

Objects are deleted only after the name is gone for good, and again by `sweep`, so a crash in between leaves nothing.
Those of a running job wait for its end: its worker may be about to publish the same content under another name.
"""

import asyncio
import logging

from sqlalchemy import select

from service.adapters import registry
from service.adapters.models import AdapterRow
from service.contracts.ids import AdapterId, JobId, ProjectId
from service.contracts.layout import adapter_prefix
from service.contracts.store import ObjectStore, StoreError
from service.db import TenantSession
from service.errors import Forbidden, ModelNotFound
from service.resources import Resources
from service.tenants import audit

log = logging.getLogger("service.adapters")


async def remove(resources: Resources, project: ProjectId, name: str) -> None:
    """Retires a fine-tuned model. Requests in flight may finish; later ones no longer find it."""
    if resources.base_model(name) is not None:
        raise Forbidden(f"The model '{name}' is a base model of this service and cannot be deleted.", param="model")
    try:
        async with resources.database.tenant(project) as session:
            await _refuse_registered(session, project, name)
            adapter_id = await registry.retire(session, project, name)
            await audit.note(session, "model.deleted", name)
    except LookupError as error:
        raise not_found(name) from error
    if adapter_id is not None:
        await delete_objects(resources.store, project, adapter_id)


async def _refuse_registered(session: TenantSession, project: ProjectId, name: str) -> None:
    model = None if name.startswith("ft:") else await registry.find(session, project, name)
    if model is not None and model.project_id == project:
        raise Forbidden(
            f"'{name}' is a registered adapter; delete it, or one of its versions, under /v1/adapters.",
            code="registered_adapter",
            param="model",
        )


async def sweep(resources: Resources, job: JobId | None = None) -> None:
    """Deletes what is left of adapters that nothing needs since lately, of one job or of all.

    May run anywhere, any number of times.
    """
    query = select(AdapterRow.project_id, AdapterRow.id).where(registry.UNNEEDED)
    if job is not None:
        query = query.where(AdapterRow.job_id == job)
    async with resources.database.control() as session:
        found = (await session.execute(query)).all()
    for project_id, adapter_id in found:
        await delete_objects(resources.store, ProjectId(project_id), AdapterId(adapter_id))


def not_found(name: str) -> ModelNotFound:
    return ModelNotFound(f"The model '{name}' does not exist or you do not have access to it.", param="model")


async def delete_objects(store: ObjectStore, project: ProjectId, adapter_id: AdapterId) -> None:
    """Deletes an adapter's files. Nothing may find the adapter any more."""
    try:
        keys = await asyncio.to_thread(store.keys, adapter_prefix(project, adapter_id))
        await asyncio.to_thread(store.delete, keys)
    except StoreError as error:
        log.warning("objects of deleted adapter %s are left for the sweep: %s", adapter_id, error)
