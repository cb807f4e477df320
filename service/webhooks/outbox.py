"""Events on their way out: written in the transaction that makes them true, sent later by `deliver`."""

import time
from typing import Any, Literal, get_args

import orjson
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from service.contracts.ids import new_delivery_id, new_webhook_event_id
from service.notifications import notify
from service.webhooks.models import DeliveryRow, EndpointRow

EventType = Literal[
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
    "checkpoint.created",
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
    "adapter.promoted",
    "adapter.promotion_refused",
    "adapter.rolled_back",
    "adapter.alias.updated",
    "adapter.alias.deleted",
]
EVENT_TYPES: tuple[str, ...] = get_args(EventType)


async def emit(session: AsyncSession, project: str, event_type: EventType, data: dict[str, Any]) -> None:
    """Queues the event for every endpoint of the project that wants its kind.

    `data` holds ids, names and numbers only.
    """
    wanted = select(EndpointRow.id).where(
        EndpointRow.project_id == project,
        EndpointRow.deleted_at.is_(None),
        EndpointRow.event_types.contains([event_type]),
    )
    endpoints = (await session.scalars(wanted)).all()
    if not endpoints:
        return
    event_id = new_webhook_event_id()
    body = body_of(event_id, event_type, data)
    session.add_all(
        DeliveryRow(
            id=new_delivery_id(),
            project_id=project,
            endpoint_id=endpoint,
            event_id=event_id,
            event_type=event_type,
            body=body,
        )
        for endpoint in endpoints
    )
    await session.flush()
    await notify(session, "webhook")


def body_of(event_id: str, event_type: str, data: dict[str, Any]) -> str:
    """The event as it is sent, in OpenAI's shape."""
    event = {"id": event_id, "object": "event", "created_at": int(time.time()), "type": event_type, "data": data}
    return orjson.dumps(event).decode()
