"""HTTP routes of training jobs, as OpenAI's clients call them."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.db import TenantSession
from service.idempotency.route import IdempotentRoute
from service.jobs import create, imports, lifecycle, listing
from service.jobs import stream as following
from service.jobs.estimate import estimate
from service.jobs.models import JobRow
from service.jobs.outlook import outlook, outlooks
from service.jobs.plan import plan
from service.jobs.schemas import (
    CheckpointObject,
    CreateJob,
    EstimateObject,
    EventObject,
    ImportJob,
    ImportObject,
    JobObject,
)
from service.jobs.views import checkpoint_object, event_object, job_object
from service.listing import Cursor, Page, page
from service.resources import CurrentResources, Resources
from service.tenants import scopes
from service.tenants.auth import CurrentTenant, Tenant, TenantTransaction

router = APIRouter(prefix="/v1/fine_tuning", tags=["fine-tuning"], route_class=IdempotentRoute)

FILTERED: dict[str, Any] = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "style": "deepObject",
            "description": "`metadata[key]=value`; only jobs with all of these.",
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
        }
    ]
}
MetadataFilter = Annotated[dict[str, str] | None, Depends(listing.metadata_filter)]


async def _shown(resources: Resources, tenant: Tenant, session: TenantSession, job: JobRow) -> JobObject:
    return job_object(tenant, job, await outlook(session, resources, job))


@router.post("/jobs")
async def create_job(
    body: CreateJob, resources: CurrentResources, tenant: CurrentTenant, session: TenantTransaction
) -> JobObject | EstimateObject:
    """Queues a job. The answer shows every resolved hyperparameter and the rule that chose it.

    With `dry_run` no job is made, and the answer is an estimate.
    """
    if body.on_success is not None:
        scopes.require_inference(tenant.scopes)
    if body.dry_run:
        return estimate(resources, await plan(session, resources, body))
    return await _shown(resources, tenant, session, await create.create(session, resources, body))


@router.post("/estimates")
async def estimate_job(body: CreateJob, resources: CurrentResources, session: TenantTransaction) -> EstimateObject:
    """What a job would take. Everything that creating checks is checked, and no job is made."""
    return estimate(resources, await plan(session, resources, body))


@router.post("/imports")
async def import_job(
    body: ImportJob, resources: CurrentResources, tenant: CurrentTenant, session: TenantTransaction
) -> ImportObject:
    """Makes a job like one that ran at OpenAI, from its job object and the training file uploaded here."""
    recreated = imports.recreate(resources, body)
    job = await create.create(session, resources, recreated.request)
    return ImportObject(job=await _shown(resources, tenant, session, job), not_carried_over=recreated.left_out)


@router.get("/jobs", openapi_extra=FILTERED)
async def list_jobs(
    resources: CurrentResources,
    tenant: CurrentTenant,
    session: TenantTransaction,
    metadata: MetadataFilter,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Page[JobObject]:
    """The project's jobs, newest first."""
    rows = await listing.list_jobs(session, Cursor(after=after, limit=limit), metadata)
    found = await outlooks(session, resources, rows)
    return page(rows, limit, lambda row: job_object(tenant, row, found[row.id]))


@router.get("/jobs/{fine_tuning_job_id}")
async def retrieve_job(
    fine_tuning_job_id: str, resources: CurrentResources, tenant: CurrentTenant, session: TenantTransaction
) -> JobObject:
    """One job."""
    return await _shown(resources, tenant, session, await lifecycle.find(session, fine_tuning_job_id))


@router.post("/jobs/{fine_tuning_job_id}/cancel")
async def cancel_job(
    fine_tuning_job_id: str, resources: CurrentResources, tenant: CurrentTenant, session: TenantTransaction
) -> JobObject:
    """Cancels a waiting job at once and a running one within a few seconds."""
    return await _shown(resources, tenant, session, await lifecycle.cancel(session, fine_tuning_job_id))


@router.post("/jobs/{fine_tuning_job_id}/pause")
async def pause_job(
    fine_tuning_job_id: str, resources: CurrentResources, tenant: CurrentTenant, session: TenantTransaction
) -> JobObject:
    """Pauses a job; a running one saves a checkpoint first."""
    return await _shown(resources, tenant, session, await lifecycle.pause(session, fine_tuning_job_id))


@router.post("/jobs/{fine_tuning_job_id}/resume")
async def resume_job(
    fine_tuning_job_id: str, resources: CurrentResources, tenant: CurrentTenant, session: TenantTransaction
) -> JobObject:
    """Queues a paused job again; it goes on from its last checkpoint."""
    return await _shown(resources, tenant, session, await lifecycle.resume(session, fine_tuning_job_id))


STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "A page, or the events."}
}


@router.get("/jobs/{fine_tuning_job_id}/events", response_model=Page[EventObject], responses=STREAMED)
async def list_events(
    fine_tuning_job_id: str,
    session: TenantTransaction,
    request: Request,
    resources: CurrentResources,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    stream: bool = False,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Page[EventObject] | Response:
    """What happened to a job, newest first; with `stream` oldest first, as server-sent events until the job has ended.

    A stream goes on behind the event `after` or, before that, behind the id in the header `Last-Event-ID`.
    """
    if stream:
        following.refuse_too_many(request, resources, session.project_id)
        begin = await following.place(session, fine_tuning_job_id, after, last_event_id)
        return StreamingResponse(following.follow(request, resources, begin), headers=following.HEADERS)
    job = await lifecycle.find(session, fine_tuning_job_id)
    rows = await listing.list_events(session, job, Cursor(after=after, limit=limit))
    return page(rows, limit, event_object)


@router.get("/jobs/{fine_tuning_job_id}/checkpoints")
async def list_checkpoints(
    fine_tuning_job_id: str,
    session: TenantTransaction,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
) -> Page[CheckpointObject]:
    """The job's checkpoints that can be used as a model, newest first: the last three and the best."""
    job = await lifecycle.find(session, fine_tuning_job_id)
    rows = await listing.list_checkpoints(session, job, Cursor(after=after, limit=limit))
    return page(rows, limit, checkpoint_object)
