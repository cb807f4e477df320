"""HTTP routes of the lease protocol; `service.contracts.worker` describes it."""

from fastapi import APIRouter, Depends, Request, Response

from service.contracts.worker import (
    CheckpointDone,
    CheckpointModel,
    ClaimRequest,
    Control,
    Finish,
    Finished,
    Lease,
    RenewRequest,
    Report,
    UploadRequest,
    UploadTargets,
)
from service.leases import checkpoint_models, checkpoints, claim, finish, report, uploads
from service.resources import CurrentResources
from service.tenants.auth import require_worker

router = APIRouter(prefix="/internal/leases", dependencies=[Depends(require_worker)], tags=["internal"])


@router.post("", response_model=Lease, responses={204: {"description": "Nothing to do."}})
async def claim_job(body: ClaimRequest, resources: CurrentResources, request: Request) -> Lease | Response:
    """The next job for a worker of this base model."""
    return await claim.claim(resources, body, request.is_disconnected) or Response(status_code=204)


@router.post("/{job_id}/renew")
async def renew_lease(job_id: str, body: RenewRequest, resources: CurrentResources) -> Control:
    """Keeps a lease."""
    return await report.renew(resources, job_id, body)


@router.post("/{job_id}/report")
async def report_progress(job_id: str, body: Report, resources: CurrentResources) -> Control:
    """Progress and events; keeps the lease too."""
    return await report.report(resources, job_id, body)


@router.post("/{job_id}/uploads")
async def upload_targets(job_id: str, body: UploadRequest, resources: CurrentResources) -> UploadTargets:
    """Where to upload the files of a manifest."""
    return await uploads.targets(resources, job_id, body)


@router.post("/{job_id}/checkpoints")
async def register_checkpoint(job_id: str, body: CheckpointDone, resources: CurrentResources) -> Control:
    """Registers an uploaded checkpoint."""
    return await checkpoints.register(resources, job_id, body)


@router.post("/{job_id}/checkpoint-models")
async def register_checkpoint_model(job_id: str, body: CheckpointModel, resources: CurrentResources) -> Control:
    """Publishes an uploaded adapter of a running job."""
    return await checkpoint_models.register(resources, job_id, body)


@router.post("/{job_id}/finish")
async def finish_job(job_id: str, body: Finish, resources: CurrentResources) -> Finished:
    """Ends a lease with an outcome."""
    return await finish.finish(resources, job_id, body)
