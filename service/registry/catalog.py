"""Registered adapters: making, finding, changing, deleting and restoring them. Names are unique within a project.

Every change of an adapter, its versions or its aliases holds its row, so they happen one after the other.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from service.adapters.destination import check_name, deleted
from service.adapters.models import RegisteredRow
from service.contracts.ids import ProjectId, new_registered_adapter_id
from service.db import TenantSession
from service.errors import Conflict, NotFound
from service.listing import Cursor, rows_of
from service.notifications import notify
from service.resources import Resources
from service.tenants import audit


async def create(
    session: TenantSession, resources: Resources, name: str, description: str | None, metadata: dict[str, str]
) -> RegisteredRow:
    """Raises where the name is not allowed or taken, also by a deleted one."""
    check_name(resources, name, "name")
    if not await _insert(session, session.project_id, name, description=description, adapter_metadata=metadata):
        row = await lock(session, session.project_id, name, also_deleted=True)
        if row.deleted_at is not None:
            raise deleted(name)
        raise Conflict(f"There is an adapter '{name}' already.", code="adapter_exists", param="name")
    row = await find(session, name)
    await audit.note(session, "adapter.created", row.id, name=name)
    return row


async def find(session: TenantSession, name: str) -> RegisteredRow:
    """The project's own live adapter. Raises NotFound for an unknown, a deleted and a foreign one alike."""
    row = await session.scalar(_own(session.project_id, name).where(RegisteredRow.deleted_at.is_(None)))
    if row is None:
        raise not_found(name)
    return row


async def list_adapters(session: TenantSession, cursor: Cursor, also_deleted: bool) -> Sequence[RegisteredRow]:
    own = RegisteredRow.project_id == session.project_id
    query = select(RegisteredRow).where(own, RegisteredRow.purged_at.is_(None))
    if not also_deleted:
        query = query.where(RegisteredRow.deleted_at.is_(None))
    begin = select(RegisteredRow.created_at, RegisteredRow.id).where(own, RegisteredRow.id == cursor.after)
    return await rows_of(session, query, (RegisteredRow.created_at, RegisteredRow.id), cursor, begin)


async def lock(session: AsyncSession, project: ProjectId, name: str, *, also_deleted: bool = False) -> RegisteredRow:
    """The adapter as it is now, held against every other change until the transaction ends."""
    query = _own(project, name).with_for_update(key_share=True).execution_options(populate_existing=True)
    row = await session.scalar(query)
    if row is None or (row.deleted_at is not None and not also_deleted):
        raise not_found(name)
    return row


async def lock_or_create(session: AsyncSession, project: ProjectId, name: str) -> RegisteredRow:
    """Like `lock`, of a name that is known to be allowed; a missing adapter is made, a deleted one given as it is."""
    await _insert(session, project, name, adapter_metadata={})
    return await lock(session, project, name, also_deleted=True)


async def change(session: TenantSession, name: str, values: dict[str, Any]) -> RegisteredRow:
    row = await lock(session, session.project_id, name)
    for column, value in values.items():
        setattr(row, column, value)
    await audit.note(session, "adapter.updated", row.id, name=name)
    return row


async def delete(session: TenantSession, name: str) -> RegisteredRow:
    """Requests no longer find it, those in flight may finish. It can be restored until it is purged."""
    row = await lock(session, session.project_id, name)
    row.deleted_at = func.clock_timestamp()
    await notify(session, "model")
    await audit.note(session, "adapter.deleted", row.id, name=name)
    return row


async def restore(session: TenantSession, name: str) -> RegisteredRow:
    """With every version and alias that it had. May be repeated."""
    row = await lock(session, session.project_id, name, also_deleted=True)
    if row.deleted_at is not None:
        row.deleted_at = None
        await notify(session, "model")
        await audit.note(session, "adapter.restored", row.id, name=name)
    return row


def not_found(name: str) -> NotFound:
    return NotFound(
        f"The adapter '{name}' does not exist or you do not have access to it.",
        code="adapter_not_found",
        param="adapter",
    )


def _own(project: ProjectId, name: str) -> Select[RegisteredRow]:
    return select(RegisteredRow).where(
        RegisteredRow.project_id == project, RegisteredRow.name == name, RegisteredRow.purged_at.is_(None)
    )


async def _insert(session: AsyncSession, project: ProjectId, name: str, **values: Any) -> bool:
    row = {"id": new_registered_adapter_id(), "project_id": project, "name": name, **values}
    made = insert(RegisteredRow).values(row)
    new = made.on_conflict_do_nothing(
        index_elements=["project_id", "name"], index_where=RegisteredRow.purged_at.is_(None)
    )
    return await session.scalar(new.returning(RegisteredRow.id)) is not None
