"""HTTP routes of training jobs, as OpenAI's clients call them."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.jobs import create, lifecycle, listing
from service.jobs.schemas import CreateJob, EventObject, JobObject
from service.jobs.views import event_object, job_object
from service.listing import Cursor, Item, Page, page
from service.resources import CurrentResources
from service.tenants.auth import CurrentTenant, TenantTransaction

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

MetadataFilter = Annotated[dict[str, str] | None, Depends(listing.metadata_filter)]


@router.post("")
async def create_job(
    body: CreateJob, resources: CurrentResources, tenant: CurrentTenant, session: TenantTransaction
) -> JobObject:
    """Queues a job. The answer shows every resolved hyperparameter and the rule that chose it."""
    return job_object(tenant, await create.create(session, resources, body))


@router.get("")
async def list_jobs(
    tenant: CurrentTenant,
    session: TenantTransaction,
    metadata: MetadataFilter,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Page[JobObject]:
    """The project's jobs, newest first."""
    rows = await listing.list_jobs(session, Cursor(after=after, limit=limit), metadata)
    return page(rows, limit, lambda row: job_object(tenant, row))


@router.get("/{fine_tuning_job_id}")
async def retrieve_job(fine_tuning_job_id: str, tenant: CurrentTenant, session: TenantTransaction) -> JobObject:
    """One job."""
    return job_object(tenant, await lifecycle.find(session, fine_tuning_job_id))


@router.post("/{fine_tuning_job_id}/cancel")
async def cancel_job(fine_tuning_job_id: str, tenant: CurrentTenant, session: TenantTransaction) -> JobObject:
    """Cancels a waiting job at once and a running one within a few seconds."""
    return job_object(tenant, await lifecycle.cancel(session, fine_tuning_job_id))


@router.post("/{fine_tuning_job_id}/pause")
async def pause_job(fine_tuning_job_id: str, tenant: CurrentTenant, session: TenantTransaction) -> JobObject:
    """Pauses a job; a running one saves a checkpoint first."""
    return job_object(tenant, await lifecycle.pause(session, fine_tuning_job_id))


@router.post("/{fine_tuning_job_id}/resume")
async def resume_job(fine_tuning_job_id: str, tenant: CurrentTenant, session: TenantTransaction) -> JobObject:
    """Queues a paused job again; it goes on from its last checkpoint."""
    return job_object(tenant, await lifecycle.resume(session, fine_tuning_job_id))


@router.get("/{fine_tuning_job_id}/events")
async def list_events(
    fine_tuning_job_id: str,
    session: TenantTransaction,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> Page[EventObject]:
    """What happened to a job, newest first."""
    job = await lifecycle.find(session, fine_tuning_job_id)
    rows = await listing.list_events(session, job, Cursor(after=after, limit=limit))
    return page(rows, limit, event_object)


@router.get("/{fine_tuning_job_id}/checkpoints")
async def list_checkpoints(fine_tuning_job_id: str, session: TenantTransaction) -> Page[Item]:
    """The job's checkpoints that can be used as a model. None are published yet, so the list is empty."""
    await lifecycle.find(session, fine_tuning_job_id)
    return Page[Item](data=[], first_id=None, last_id=None, has_more=False)
