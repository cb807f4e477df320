"""Registered adapters shared with other projects of the organization: granted by the administrator, for use only.

The administrator decides because it puts a name into another project. Names are unique within a project, so an adapter
is named by its id where several projects have one of that name.
"""

from collections.abc import Sequence

from sqlalchemy import delete, or_, select
from sqlalchemy.dialects.postgresql import insert

from service.adapters.models import GrantRow, RegisteredRow
from service.contracts.ids import new_adapter_grant_id
from service.db import ControlSession
from service.errors import InvalidRequest, NotFound
from service.listing import Cursor, rows_of
from service.notifications import notify
from service.registry.catalog import not_found
from service.tenants import audit
from service.tenants.models import OrganizationRow, ProjectRow


async def grant(
    session: ControlSession, organization: str, adapter: str, projects: Sequence[str]
) -> Sequence[GrantRow]:
    """Lets all these projects use a live adapter; permissions that there are already stay as they are."""
    registered = await _find(session, organization, adapter)
    known = select(ProjectRow.id).join(OrganizationRow).where(OrganizationRow.name == organization)
    found = set(await session.scalars(known.where(ProjectRow.id.in_(projects), ProjectRow.status == "active")))
    for project in projects:
        if project not in found:
            raise InvalidRequest(f"There is no project '{project}'.", code="project_not_found", param="project_ids")
    rows = [
        {"id": new_adapter_grant_id(), "project_id": project, "registered_id": registered.id}
        for project in sorted(found)
    ]
    await session.execute(insert(GrantRow).on_conflict_do_nothing(), rows)
    for project in sorted(found):
        await audit.note(session, "adapter.permission.created", registered.id, project, name=registered.name)
    await notify(session, "model")
    granted = select(GrantRow).where(GrantRow.registered_id == registered.id, GrantRow.project_id.in_(found))
    return (await session.scalars(granted.order_by(GrantRow.created_at, GrantRow.id))).all()


async def list_permissions(
    session: ControlSession, organization: str, adapter: str, cursor: Cursor
) -> Sequence[GrantRow]:
    registered = await _find(session, organization, adapter)
    query = select(GrantRow).where(GrantRow.registered_id == registered.id)
    columns = (GrantRow.created_at, GrantRow.id)
    begin = query.with_only_columns(*columns).where(GrantRow.id == cursor.after)
    return await rows_of(session, query, columns, cursor, begin)


async def revoke(session: ControlSession, organization: str, adapter: str, permission_id: str) -> None:
    registered = await _find(session, organization, adapter)
    ended = delete(GrantRow).where(GrantRow.id == permission_id, GrantRow.registered_id == registered.id)
    project = await session.scalar(ended.returning(GrantRow.project_id))
    if project is None:
        raise NotFound(f"No such permission: {permission_id}.", param="permission_id")
    await audit.note(session, "adapter.permission.deleted", registered.id, project, name=registered.name)
    await notify(session, "model")


async def _find(session: ControlSession, organization: str, adapter: str) -> RegisteredRow:
    query = (
        select(RegisteredRow)
        .join(ProjectRow, ProjectRow.id == RegisteredRow.project_id)
        .join(OrganizationRow)
        .where(OrganizationRow.name == organization, RegisteredRow.deleted_at.is_(None))
        .where(or_(RegisteredRow.id == adapter, RegisteredRow.name == adapter))
        .limit(2)
    )
    found = (await session.scalars(query)).all()
    if not found:
        raise not_found(adapter)
    if len(found) > 1:
        raise InvalidRequest(
            f"Several projects have an adapter '{adapter}'; name it by its id, 'adapter-…'.",
            code="adapter_ambiguous",
            param="adapter",
        )
    return found[0]
