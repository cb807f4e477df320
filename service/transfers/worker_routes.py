"""HTTP routes of imports and exports for workers; `service.contracts.transfer` describes them."""

from fastapi import APIRouter, Depends, Response

from service.contracts.transfer import (
    TransferClaim,
    TransferControl,
    TransferFinish,
    TransferFinished,
    TransferLease,
    TransferRenew,
    TransferUploads,
)
from service.contracts.worker import UploadTargets
from service.resources import CurrentResources
from service.tenants.auth import require_worker
from service.transfers import claim, finish, uploads

router = APIRouter(prefix="/internal/transfers", dependencies=[Depends(require_worker)], tags=["internal"])


@router.post("/lease", response_model=TransferLease, responses={204: {"description": "Nothing to do."}})
async def claim_transfer(body: TransferClaim, resources: CurrentResources) -> TransferLease | Response:
    """The next import or merge for a worker of this base model."""
    return await claim.claim(resources, body) or Response(status_code=204)


@router.post("/{transfer}/renew")
async def renew_transfer(transfer: str, body: TransferRenew, resources: CurrentResources) -> TransferControl:
    """Keeps a lease."""
    return await claim.renew(resources, transfer, body)


@router.post("/{transfer}/uploads")
async def transfer_targets(transfer: str, body: TransferUploads, resources: CurrentResources) -> UploadTargets:
    """Where to upload what was made."""
    return await uploads.targets(resources, transfer, body)


@router.post("/{transfer}/finish")
async def finish_transfer(transfer: str, body: TransferFinish, resources: CurrentResources) -> TransferFinished:
    """Ends a lease with an outcome."""
    return await finish.finish(resources, transfer, body)
