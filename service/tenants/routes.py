"""The administrator's routes of projects, at OpenAI's addresses; what belongs to one project is in `project_routes`."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.idempotency.route import IdempotentRoute
from service.listing import Cursor, Order, page
from service.resources import ControlTransaction, CurrentResources
from service.tenants import admin_keys, audit_routes, limit_routes, project_routes, projects
from service.tenants.auth import require_admin
from service.tenants.schemas import (
    AdminKey,
    AdminKeyDeleted,
    AdminKeyPage,
    Named,
    NewAdminKey,
    NewAdminKeyBody,
    Project,
    ProjectPage,
)

router = APIRouter(
    prefix="/v1/organization",
    tags=["organization"],
    dependencies=[Depends(require_admin)],
    route_class=IdempotentRoute,
)

Limit = Annotated[int, Query(ge=1, le=100)]


@router.post("/projects")
async def create_project(body: Named, session: ControlTransaction, resources: CurrentResources) -> Project:
    """Makes a project: a tenant, with files, jobs, models and keys of its own."""
    return Project.of(await projects.create_project(session, resources.settings.organization_name, body.name))


@router.get("/projects")
async def list_projects(
    session: ControlTransaction,
    resources: CurrentResources,
    after: str | None = None,
    limit: Limit = 20,
    name: str | None = None,
    include_archived: bool = False,
) -> ProjectPage:
    """The organization's projects, newest first."""
    cursor = Cursor(after=after, limit=limit)
    organization = resources.settings.organization_name
    rows = await projects.list_projects(session, organization, cursor, name, include_archived)
    return page(rows, limit, Project.of)


@router.get("/projects/{project_id}")
async def get_project(project: project_routes.NamedProject) -> Project:
    """One project."""
    return Project.of(project)


@router.post("/projects/{project_id}")
async def rename_project(
    project_id: str, body: Named, session: ControlTransaction, resources: CurrentResources
) -> Project:
    """Gives a project another name."""
    organization = resources.settings.organization_name
    return Project.of(await projects.rename_project(session, organization, project_id, body.name))


@router.post("/projects/{project_id}/archive")
async def archive_project(project_id: str, session: ControlTransaction, resources: CurrentResources) -> Project:
    """Ends a project: its keys stop working. It cannot be undone."""
    return Project.of(await projects.archive_project(session, resources.settings.organization_name, project_id))


@router.post("/admin_api_keys")
async def create_admin_key(body: NewAdminKeyBody, session: ControlTransaction) -> NewAdminKey:
    """Makes an administrator's key. Its value is in this answer and in no later one."""
    row, value = await admin_keys.create(session, body.name, body.expires_in_seconds)
    return NewAdminKey(**AdminKey.of(row).model_dump(), value=value)


@router.get("/admin_api_keys")
async def list_admin_keys(
    session: ControlTransaction, after: str | None = None, limit: Limit = 20, order: Order = "asc"
) -> AdminKeyPage:
    """The administrators' keys."""
    return page(await admin_keys.list_keys(session, after, limit, order), limit, AdminKey.of)


@router.get("/admin_api_keys/{key_id}")
async def get_admin_key(key_id: str, session: ControlTransaction) -> AdminKey:
    """One administrator's key."""
    return AdminKey.of(await admin_keys.find(session, key_id))


@router.delete("/admin_api_keys/{key_id}")
async def delete_admin_key(key_id: str, session: ControlTransaction) -> AdminKeyDeleted:
    """Revokes an administrator's key."""
    await admin_keys.revoke(session, key_id)
    return AdminKeyDeleted(id=key_id)


router.include_router(project_routes.router)
router.include_router(limit_routes.router)
router.include_router(audit_routes.router)
