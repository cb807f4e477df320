"""What was sent to an endpoint, or is still to be: listing it, and sending it once more."""

from collections.abc import Sequence

from sqlalchemy import func, select

from service.db import TenantSession
from service.errors import NotFound
from service.listing import Cursor, rows_of
from service.notifications import notify
from service.tenants import audit
from service.webhooks.models import DeliveryRow, EndpointRow


async def list_deliveries(session: TenantSession, endpoint: EndpointRow, cursor: Cursor) -> Sequence[DeliveryRow]:
    """Newest first."""
    query = select(DeliveryRow).where(
        DeliveryRow.project_id == session.project_id, DeliveryRow.endpoint_id == endpoint.id
    )
    begin = query.with_only_columns(DeliveryRow.created_at, DeliveryRow.id).where(DeliveryRow.id == cursor.after)
    return await rows_of(session, query, (DeliveryRow.created_at, DeliveryRow.id), cursor, begin)


async def redeliver(session: TenantSession, endpoint: EndpointRow, delivery_id: str) -> DeliveryRow:
    """Sends the same event under the same id again, from the first attempt on; one that is due anyway is sent now."""
    query = select(DeliveryRow).where(
        DeliveryRow.project_id == session.project_id,
        DeliveryRow.endpoint_id == endpoint.id,
        DeliveryRow.id == delivery_id,
    )
    row = await session.scalar(query.with_for_update())
    if row is None:
        raise NotFound(f"No such webhook delivery: {delivery_id}.", param="webhook_delivery_id")
    if row.status != "pending":
        row.status, row.attempts, row.delivered_at = "pending", 0, None
    row.next_attempt_at = func.now()
    await session.flush()
    await session.refresh(row)
    await audit.note(session, "webhook_delivery.redelivered", row.id, endpoint=endpoint.id, event_type=row.event_type)
    await notify(session, "webhook")
    return row
