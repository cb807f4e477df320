"""HTTP routes of inference replicas: a heartbeat that registers, and leaving."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path

from service.contracts.replica import ReplicaHeartbeat, ReplicaOrders
from service.replicas import register
from service.resources import ControlTransaction, CurrentResources
from service.tenants.auth import require_replica

router = APIRouter(prefix="/internal/replicas", dependencies=[Depends(require_replica)], tags=["internal"])

ReplicaId = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


@router.put("/{replica}")
async def heartbeat(
    replica: ReplicaId, beat: ReplicaHeartbeat, resources: CurrentResources, session: ControlTransaction
) -> ReplicaOrders:
    """Registers a replica, or says that it is still there."""
    register.check(resources, beat)
    return await register.announce(session, replica, beat)


@router.delete("/{replica}", status_code=204)
async def leave(replica: ReplicaId, session: ControlTransaction) -> None:
    """The replica is gone. May be repeated."""
    await register.leave(session, replica)
