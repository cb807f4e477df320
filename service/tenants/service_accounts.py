"""Service accounts of a project: owners of keys that are no person."""

from collections.abc import Sequence

from sqlalchemy import func, select, update

from service.contracts.ids import new_service_account_id
from service.db import ControlSession
from service.errors import Conflict, NotFound
from service.listing import Cursor, rows_of
from service.notifications import notify
from service.tenants import audit
from service.tenants.models import KeyRow, ProjectRow, ServiceAccountRow


async def create(session: ControlSession, project: ProjectRow, name: str, role: str) -> ServiceAccountRow:
    if project.status != "active":
        raise Conflict("The project is archived; it takes no new service accounts.", code="project_archived")
    row = ServiceAccountRow(id=new_service_account_id(), project_id=project.id, name=name, role=role)
    session.add(row)
    await session.flush()
    await session.refresh(row)
    await audit.note(session, "service_account.created", row.id, project.id, role=role)
    return row


async def find(session: ControlSession, project: ProjectRow, account_id: str) -> ServiceAccountRow:
    live = select(ServiceAccountRow).where(
        ServiceAccountRow.project_id == project.id, ServiceAccountRow.deleted_at.is_(None)
    )
    row = await session.scalar(live.where(ServiceAccountRow.id == account_id))
    if row is None:
        raise NotFound(f"No such service account: {account_id}.", param="service_account_id")
    return row


async def list_accounts(session: ControlSession, project: ProjectRow, cursor: Cursor) -> Sequence[ServiceAccountRow]:
    own = select(ServiceAccountRow).where(ServiceAccountRow.project_id == project.id)
    place = (ServiceAccountRow.created_at, ServiceAccountRow.id)
    begin = select(*place).where(ServiceAccountRow.project_id == project.id, ServiceAccountRow.id == cursor.after)
    return await rows_of(session, own.where(ServiceAccountRow.deleted_at.is_(None)), place, cursor, begin)


async def rename(session: ControlSession, project: ProjectRow, account_id: str, name: str) -> ServiceAccountRow:
    row = await find(session, project, account_id)
    row.name = name
    await audit.note(session, "service_account.updated", row.id, project.id, name=name)
    return row


async def delete(session: ControlSession, project: ProjectRow, account_id: str) -> None:
    """Its keys end with it."""
    row = await find(session, project, account_id)
    row.deleted_at = await session.scalar(select(func.now()))
    keys = update(KeyRow).where(KeyRow.service_account_id == row.id, KeyRow.revoked_at.is_(None))
    await session.execute(keys.values(revoked_at=func.now()))
    await notify(session, "key")
    await audit.note(session, "service_account.deleted", row.id, project.id)
