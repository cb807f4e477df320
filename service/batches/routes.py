"""The batches routes, at OpenAI's addresses: many requests in one file, answered in another."""

from typing import Annotated

from fastapi import APIRouter, Query

from service.batches import lifecycle
from service.batches.schemas import Batch, CreateBatch
from service.idempotency.route import IdempotentRoute
from service.listing import Cursor, Page, page
from service.resources import CurrentResources
from service.tenants.auth import CurrentTenant, TenantTransaction

router = APIRouter(prefix="/v1/batches", tags=["batches"], route_class=IdempotentRoute)


@router.post("")
async def create_batch(
    body: CreateBatch, resources: CurrentResources, tenant: CurrentTenant, session: TenantTransaction
) -> Batch:
    """Queues the requests of a file, to be answered within 24 hours whenever nobody else needs the models."""
    return Batch.of(await lifecycle.create(session, resources.settings, tenant, body))


@router.get("")
async def list_batches(
    session: TenantTransaction, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> Page[Batch]:
    """The project's batches, newest first."""
    return page(await lifecycle.list_batches(session, Cursor(after=after, limit=limit)), limit, Batch.of)


@router.get("/{batch_id}")
async def get_batch(batch_id: str, session: TenantTransaction) -> Batch:
    """How far a batch is, and where its answers are once it is over."""
    return Batch.of(await lifecycle.find(session, batch_id))


@router.post("/{batch_id}/cancel")
async def cancel_batch(batch_id: str, session: TenantTransaction) -> Batch:
    """Ends a batch within seconds. What was answered until then is in its files."""
    return Batch.of(await lifecycle.cancel(session, batch_id))
