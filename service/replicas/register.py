"""Keeping the rows of replicas: announcing, leaving, and what a replica is asked to do in answer."""

from urllib.parse import urlsplit

from sqlalchemy import Text, any_, cast, delete, func, select, update
from sqlalchemy.dialects.postgresql import ARRAY, insert

from service.adapters.models import AdapterRow
from service.contracts.replica import ReplicaHeartbeat, ReplicaOrders
from service.db import ControlSession
from service.errors import Conflict, InvalidRequest
from service.notifications import notify
from service.replicas import quarantine
from service.replicas.models import ReplicaRow
from service.resources import Resources


def check(resources: Resources, beat: ReplicaHeartbeat) -> None:
    """Raises where this service may not send requests to such a replica."""
    base = resources.base_model(beat.base_model)
    if base is None:
        raise InvalidRequest(f"This service offers no base model '{beat.base_model}'.", param="base_model")
    if base.fingerprint != beat.base_fingerprint:
        raise Conflict(
            f"The replica's '{beat.base_model}' is not the one this service was configured with: fingerprint "
            f"{beat.base_fingerprint[:12]} instead of {base.fingerprint[:12]}. Point both at the same weights.",
            code="base_model_mismatch",
            param="base_fingerprint",
        )
    wanted = resources.settings.max_lora_rank
    if beat.max_lora_rank < wanted:
        raise Conflict(
            f"The replica serves adapters up to rank {beat.max_lora_rank}, and jobs here may train up to {wanted}. "
            "Give the replica a larger WEFT_REPLICA_MAX_LORA_RANK, or the service a smaller WEFT_MAX_LORA_RANK.",
            code="max_lora_rank_mismatch",
            param="max_lora_rank",
        )
    address = urlsplit(beat.url)
    if address.scheme not in {"http", "https"} or not address.hostname or address.query or address.fragment:
        raise InvalidRequest("'url' must look like http://host:port.", param="url")


async def announce(session: ControlSession, replica: str, beat: ReplicaHeartbeat) -> ReplicaOrders:
    """Writes by the database's clock what is new of the row, and answers with what the replica should do."""
    values = beat.model_dump(mode="json", exclude={"stored", "quarantined"})
    # In no order: which of them were used last changes all the time, and nobody asks.
    values |= {"url": beat.url.rstrip("/"), "adapters": sorted(beat.adapters)}
    before = await session.scalar(select(ReplicaRow).where(ReplicaRow.id == replica).with_for_update())
    new = {name: value for name, value in values.items() if before is None or getattr(before, name) != value}
    if before is None:
        first = insert(ReplicaRow).values(id=replica, **values)
        await session.execute(first.on_conflict_do_update(index_elements=["id"], set_=values))
    else:
        await session.execute(update(ReplicaRow).where(ReplicaRow.id == replica).values(seen_at=func.now(), **new))
    news = await quarantine.note(session, beat.quarantined)
    if news or not new.keys().isdisjoint({"url", "api_key", "state"}):
        await notify(session, "replica")
    return ReplicaOrders(evict=await _deleted(session, (*beat.adapters, *beat.stored)))


async def leave(session: ControlSession, replica: str) -> None:
    await session.execute(delete(ReplicaRow).where(ReplicaRow.id == replica))
    await notify(session, "replica")


async def _deleted(session: ControlSession, adapters: tuple[str, ...]) -> tuple[str, ...]:
    if not adapters:
        return ()
    named = AdapterRow.id == any_(cast(list(adapters), ARRAY(Text)))
    query = select(AdapterRow.id).where(named, AdapterRow.deleted_at.is_not(None))
    return tuple(await session.scalars(query.order_by(AdapterRow.id)))
