"""Projects of this installation's one organization: made, found, listed, renamed, limited, archived: the tenants."""

from collections.abc import Sequence

from sqlalchemy import Select, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from service.contracts.ids import new_organization_id, new_project_id
from service.db import ControlSession
from service.errors import Conflict, NotFound
from service.listing import Cursor, rows_of
from service.notifications import notify
from service.tenants import audit
from service.tenants.models import OrganizationRow, ProjectRow


async def ensure_organization(session: ControlSession, name: str) -> None:
    """Makes the organization where it does not exist. Any number of processes may do so at once."""
    await session.execute(insert(OrganizationRow).values(id=new_organization_id(), name=name).on_conflict_do_nothing())


async def create_project(session: ControlSession, organization: str, name: str) -> ProjectRow:
    owner = select(OrganizationRow.id).where(OrganizationRow.name == organization).scalar_subquery()
    made = insert(ProjectRow).values(id=new_project_id(), organization_id=owner, name=name)
    row = await session.scalar(made.on_conflict_do_nothing().returning(ProjectRow))
    if row is None:
        raise Conflict(
            "A project of this name exists already; archived projects keep their names.",
            code="project_exists",
            param="name",
        )
    await audit.note(session, "project.created", row.id, row.id, name=name)
    return row


async def rename_project(session: ControlSession, organization: str, project_id: str, name: str) -> ProjectRow:
    row = await find_project(session, organization, project_id)
    row.name = name
    try:
        await session.flush()
    except IntegrityError as error:
        raise Conflict("A project of this name exists already.", code="project_exists", param="name") from error
    await audit.note(session, "project.updated", row.id, row.id, name=name)
    return row


async def limit_project(session: ControlSession, project: ProjectRow, **limits: int | None) -> ProjectRow:
    """Sets limits by the names of their columns. Gateways know within the caches' few seconds, mostly at once."""
    for name, value in limits.items():
        setattr(project, name, value)
    await session.flush()
    await notify(session, "key")
    await audit.note(session, "rate_limit.updated", project.id, project.id, **limits)
    return project


async def find_project(session: ControlSession, organization: str, project_id: str) -> ProjectRow:
    row = await session.scalar(_of(organization).where(ProjectRow.id == project_id))
    if row is None:
        raise NotFound(f"No such project: {project_id}.", param="project_id")
    return row


async def list_projects(
    session: ControlSession, organization: str, cursor: Cursor, name: str | None, include_archived: bool
) -> Sequence[ProjectRow]:
    query = _of(organization)
    if name is not None:
        query = query.where(ProjectRow.name == name)
    if not include_archived:
        query = query.where(ProjectRow.status == "active")
    begin = select(ProjectRow.created_at, ProjectRow.id).where(ProjectRow.id == cursor.after)
    return await rows_of(session, query, (ProjectRow.created_at, ProjectRow.id), cursor, begin)


async def archive_project(session: ControlSession, organization: str, project_id: str) -> ProjectRow:
    """Ends the project for good: its keys stop working. May be repeated."""
    row = await find_project(session, organization, project_id)
    if row.status == "active":
        row.status = "archived"
        row.archived_at = await session.scalar(select(func.now()))
        await notify(session, "key")
        await audit.note(session, "project.archived", row.id, row.id)
    return row


def _of(organization: str) -> Select[ProjectRow]:
    return select(ProjectRow).join(OrganizationRow).where(OrganizationRow.name == organization)
