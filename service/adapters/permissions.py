"""Models shared with other projects of the organization: granted by the administrator, seen by the project itself.

A shared model can be used and not changed, deleted or trained further.
"""

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert

from service.adapters.models import ModelRow, PermissionRow
from service.adapters.removal import not_found
from service.contracts.ids import new_permission_id
from service.db import ControlSession
from service.errors import InvalidRequest, NotFound
from service.listing import Cursor, rows_of
from service.notifications import notify
from service.tenants import audit
from service.tenants.models import OrganizationRow, ProjectRow


async def grant(
    session: ControlSession, organization: str, model: str, projects: Sequence[str]
) -> Sequence[PermissionRow]:
    """Permissions of all these projects on a live model; those that there are already stay as they are."""
    await _live(session, organization, model)
    known = select(ProjectRow.id).join(OrganizationRow).where(OrganizationRow.name == organization)
    found = set(await session.scalars(known.where(ProjectRow.id.in_(projects), ProjectRow.status == "active")))
    for project in projects:
        if project not in found:
            raise InvalidRequest(f"There is no project '{project}'.", code="project_not_found", param="project_ids")
    rows = [{"id": new_permission_id(), "project_id": project, "model_name": model} for project in sorted(found)]
    await session.execute(insert(PermissionRow).on_conflict_do_nothing(), rows)
    for project in sorted(found):
        await audit.note(session, "checkpoint.permission.created", model, project)
    await notify(session, "model")
    granted = select(PermissionRow).where(PermissionRow.model_name == model, PermissionRow.project_id.in_(found))
    return (await session.scalars(granted.order_by(PermissionRow.created_at, PermissionRow.id))).all()


async def list_permissions(
    session: ControlSession, organization: str, model: str, cursor: Cursor, project: str | None
) -> Sequence[PermissionRow]:
    await _live(session, organization, model)
    query = select(PermissionRow).where(PermissionRow.model_name == model)
    begin = query.with_only_columns(PermissionRow.created_at, PermissionRow.id).where(PermissionRow.id == cursor.after)
    if project is not None:
        query = query.where(PermissionRow.project_id == project)
    return await rows_of(session, query, (PermissionRow.created_at, PermissionRow.id), cursor, begin)


async def revoke(session: ControlSession, organization: str, model: str, permission_id: str) -> None:
    await _live(session, organization, model)
    ended = delete(PermissionRow).where(PermissionRow.id == permission_id, PermissionRow.model_name == model)
    project = await session.scalar(ended.returning(PermissionRow.project_id))
    if project is None:
        raise NotFound(f"No such permission: {permission_id}.", param="permission_id")
    await audit.note(session, "checkpoint.permission.deleted", model, project)
    await notify(session, "model")


async def _live(session: ControlSession, organization: str, model: str) -> None:
    query = (
        select(ModelRow.name)
        .join(ProjectRow, ProjectRow.id == ModelRow.project_id)
        .join(OrganizationRow)
        .where(ModelRow.name == model, ModelRow.deleted_at.is_(None), OrganizationRow.name == organization)
    )
    if await session.scalar(query) is None:
        raise not_found(model)
