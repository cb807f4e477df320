"""The administrator's routes: projects and their keys, at OpenAI's addresses. Needs the admin key."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.listing import Cursor, page
from service.resources import ControlTransaction, CurrentResources
from service.tenants import issue, projects
from service.tenants.auth import require_admin
from service.tenants.models import ProjectRow
from service.tenants.schemas import Key, KeyDeleted, KeyPage, Named, NewKey, Project, ProjectPage

router = APIRouter(prefix="/v1/organization/projects", tags=["organization"], dependencies=[Depends(require_admin)])

Limit = Annotated[int, Query(ge=1, le=100)]


async def _named_project(project_id: str, session: ControlTransaction, resources: CurrentResources) -> ProjectRow:
    return await projects.find_project(session, resources.settings.organization_name, project_id)


NamedProject = Annotated[ProjectRow, Depends(_named_project)]


@router.post("")
async def create_project(body: Named, session: ControlTransaction, resources: CurrentResources) -> Project:
    return Project.of(await projects.create_project(session, resources.settings.organization_name, body.name))


@router.get("")
async def list_projects(
    session: ControlTransaction,
    resources: CurrentResources,
    after: str | None = None,
    limit: Limit = 20,
    name: str | None = None,
    include_archived: bool = False,
) -> ProjectPage:
    cursor = Cursor(after=after, limit=limit)
    organization = resources.settings.organization_name
    rows = await projects.list_projects(session, organization, cursor, name, include_archived)
    return page(rows, limit, Project.of)


@router.get("/{project_id}")
async def get_project(project: NamedProject) -> Project:
    return Project.of(project)


@router.post("/{project_id}/archive")
async def archive_project(project_id: str, session: ControlTransaction, resources: CurrentResources) -> Project:
    return Project.of(await projects.archive_project(session, resources.settings.organization_name, project_id))


@router.post("/{project_id}/api_keys")
async def create_key(body: Named, project: NamedProject, session: ControlTransaction) -> NewKey:
    row, value = await issue.issue_key(session, project, body.name)
    return NewKey(**Key.of(row).model_dump(), value=value)


@router.get("/{project_id}/api_keys")
async def list_keys(
    project: NamedProject, session: ControlTransaction, after: str | None = None, limit: Limit = 20
) -> KeyPage:
    return page(await issue.list_keys(session, project, Cursor(after=after, limit=limit)), limit, Key.of)


@router.get("/{project_id}/api_keys/{api_key_id}")
async def get_key(api_key_id: str, project: NamedProject, session: ControlTransaction) -> Key:
    return Key.of(await issue.find_key(session, project, api_key_id))


@router.delete("/{project_id}/api_keys/{api_key_id}")
async def delete_key(api_key_id: str, project: NamedProject, session: ControlTransaction) -> KeyDeleted:
    await issue.revoke_key(session, project, api_key_id)
    return KeyDeleted(id=api_key_id)
