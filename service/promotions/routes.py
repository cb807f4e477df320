"""HTTP routes of evaluations: how good a version is on examples that it was not trained on."""

from typing import Annotated

from fastapi import APIRouter, Query

from service.idempotency.route import IdempotentRoute
from service.listing import Cursor, Order, Page, page
from service.promotions.schemas import CreateEvaluation, Evaluation
from service.registry import catalog, evaluations
from service.resources import CurrentResources
from service.tenants import scopes
from service.tenants.auth import CurrentTenant, TenantTransaction

router = APIRouter(prefix="/v1/adapters", tags=["adapters"], route_class=IdempotentRoute)


@router.post("/{adapter}/evaluations")
async def create_evaluation(
    adapter: str,
    body: CreateEvaluation,
    resources: CurrentResources,
    tenant: CurrentTenant,
    session: TenantTransaction,
) -> Evaluation:
    """Has a version answer the examples of a file and its answers graded, whenever nobody else needs the models."""
    scopes.require_inference(tenant.scopes)
    registered, row = await evaluations.create(
        session, resources, tenant.key_id, adapter, body.version, body.file_id, body.grader
    )
    return Evaluation.of(registered.name, row)


@router.get("/{adapter}/evaluations")
async def list_evaluations(
    adapter: str,
    session: TenantTransaction,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Order = "desc",
) -> Page[Evaluation]:
    """An adapter's evaluations, newest first, with those that jobs asked for."""
    registered = await catalog.find(session, adapter)
    cursor = Cursor(after=after, limit=limit, order=order)
    rows = await evaluations.list_evaluations(session, registered, cursor)
    return page(rows, limit, lambda row: Evaluation.of(adapter, row))


@router.get("/{adapter}/evaluations/{evaluation_id}")
async def retrieve_evaluation(adapter: str, evaluation_id: str, session: TenantTransaction) -> Evaluation:
    """How far an evaluation is, its score, and what came of it."""
    registered, row = await evaluations.find(session, adapter, evaluation_id)
    return Evaluation.of(registered.name, row)
