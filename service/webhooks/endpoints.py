"""A project's webhook endpoints: made, found, listed, changed and ended. Sending is `deliver`'s."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select, update

from service.contracts.ids import new_endpoint_id
from service.db import TenantSession
from service.errors import InvalidRequest, NotFound
from service.listing import Cursor, rows_of
from service.notifications import notify
from service.tenants import audit
from service.webhooks.models import DeliveryRow, EndpointRow

MAX_ENDPOINTS = 20
KEPT = timedelta(hours=24)
"""How long a secret that was rotated signs beside the new one, where its owner wants that."""


async def create(session: TenantSession, name: str, url: str, event_types: Sequence[str]) -> EndpointRow:
    count = select(func.count()).select_from(EndpointRow).where(_own(session))
    if (await session.scalar(count) or 0) >= MAX_ENDPOINTS:
        raise InvalidRequest(
            f"A project has at most {MAX_ENDPOINTS} webhook endpoints; delete one first.",
            code="too_many_webhook_endpoints",
        )
    row = EndpointRow(
        id=new_endpoint_id(), project_id=session.project_id, name=name, url=url, event_types=list(event_types)
    )
    session.add(row)
    # Never the address: it may carry a token.
    await audit.note(session, "webhook_endpoint.created", row.id, name=name, event_types=row.event_types)
    return await _as_stored(session, row)


async def find(session: TenantSession, endpoint_id: str) -> EndpointRow:
    """Raises NotFound for an unknown, a deleted and a foreign id alike."""
    row = await session.scalar(select(EndpointRow).where(_own(session), EndpointRow.id == endpoint_id))
    if row is None:
        raise NotFound(f"No such webhook endpoint: {endpoint_id}.", param="webhook_endpoint_id")
    return row


async def list_endpoints(session: TenantSession, cursor: Cursor) -> Sequence[EndpointRow]:
    begin = select(EndpointRow.created_at, EndpointRow.id).where(
        EndpointRow.project_id == session.project_id, EndpointRow.id == cursor.after
    )
    query = select(EndpointRow).where(_own(session))
    return await rows_of(session, query, (EndpointRow.created_at, EndpointRow.id), cursor, begin)


async def change(session: TenantSession, endpoint_id: str, changes: dict[str, Any]) -> EndpointRow:
    """`changes` holds columns, or `status`. What waits for a disabled one is sent if it is enabled in time."""
    row = await find(session, endpoint_id)
    status = changes.pop("status", None)
    changed = [column for column, value in changes.items() if getattr(row, column) != value]
    for column in changed:
        setattr(row, column, changes[column])
    if status is not None and status != status_of(row):
        row.disabled_at = func.now() if status == "disabled" else None
        changed.append("status")
    if changed:
        row.updated_at = func.now()
    await audit.note(session, "webhook_endpoint.updated", row.id, changed=sorted(changed))
    await notify(session, "webhook")
    return await _as_stored(session, row)


async def rotate(session: TenantSession, endpoint_id: str, keep_old: bool) -> EndpointRow:
    """The next secret from now on; with `keep_old` the one before signs as well for a day."""
    row = await find(session, endpoint_id)
    await session.refresh(row, with_for_update=True)
    row.secret_version += 1
    row.previous_until = func.now() + KEPT if keep_old else None
    row.updated_at = func.now()
    await audit.note(session, "webhook_endpoint.secret_rotated", row.id, keep_old=keep_old)
    return await _as_stored(session, row)


async def delete(session: TenantSession, endpoint_id: str) -> None:
    """Ends the endpoint and what still waits for it."""
    row = await find(session, endpoint_id)
    row.deleted_at = func.now()
    await session.flush()
    await audit.note(session, "webhook_endpoint.deleted", row.id)
    waiting = update(DeliveryRow).where(DeliveryRow.endpoint_id == row.id, DeliveryRow.status == "pending")
    await session.execute(waiting.values(status="failed", error="the endpoint was deleted"))


def status_of(row: EndpointRow) -> str:
    return "enabled" if row.disabled_at is None else "disabled"


def _own(session: TenantSession) -> Any:
    return (EndpointRow.project_id == session.project_id) & EndpointRow.deleted_at.is_(None)


async def _as_stored(session: TenantSession, row: EndpointRow) -> EndpointRow:
    await session.flush()
    await session.refresh(row)
    return row
