"""The administrator's routes of a project's keys and service accounts. `routes` includes them and asks for the key."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.idempotency.route import IdempotentRoute
from service.listing import Cursor, page
from service.resources import ControlTransaction, CurrentResources
from service.tenants import issue, projects, service_accounts
from service.tenants.models import ProjectRow
from service.tenants.schemas import (
    Account,
    AccountDeleted,
    AccountKey,
    AccountPage,
    CreatedAccount,
    Key,
    KeyChange,
    KeyDeleted,
    KeyPage,
    Named,
    NewAccount,
    NewKey,
    NewKeyBody,
    Rotation,
)

router = APIRouter(prefix="/projects/{project_id}", route_class=IdempotentRoute)

Limit = Annotated[int, Query(ge=1, le=100)]


async def _named_project(project_id: str, session: ControlTransaction, resources: CurrentResources) -> ProjectRow:
    return await projects.find_project(session, resources.settings.organization_name, project_id)


NamedProject = Annotated[ProjectRow, Depends(_named_project)]


@router.post("/api_keys")
async def create_key(body: NewKeyBody, project: NamedProject, session: ControlTransaction) -> NewKey:
    """Makes a key of the project. Its value is in this answer and in no later one."""
    seconds = body.expires_in_seconds
    row, value = await issue.issue_key(session, project, body.name, scopes=body.scopes, seconds=seconds)
    return NewKey(**Key.of(row).model_dump(), value=value)


@router.get("/api_keys")
async def list_keys(
    project: NamedProject, session: ControlTransaction, after: str | None = None, limit: Limit = 20
) -> KeyPage:
    """The project's keys, newest first."""
    return page(await issue.list_keys(session, project, Cursor(after=after, limit=limit)), limit, Key.of)


@router.get("/api_keys/{api_key_id}")
async def get_key(api_key_id: str, project: NamedProject, session: ControlTransaction) -> Key:
    """One key."""
    return Key.of(await issue.find_key(session, project, api_key_id))


@router.post("/api_keys/{api_key_id}")
async def change_key(api_key_id: str, body: KeyChange, project: NamedProject, session: ControlTransaction) -> Key:
    """Changes a key's name, scopes or end."""
    seconds = body.expires_in_seconds
    row = await issue.change_key(session, project, api_key_id, name=body.name, scopes=body.scopes, seconds=seconds)
    return Key.of(row)


@router.post("/api_keys/{api_key_id}/rotate")
async def rotate_key(api_key_id: str, body: Rotation, project: NamedProject, session: ControlTransaction) -> NewKey:
    """A new key in place of this one, which goes on for a while so that its users can change over."""
    row, value = await issue.rotate_key(session, project, api_key_id, body.grace_seconds)
    return NewKey(**Key.of(row).model_dump(), value=value)


@router.delete("/api_keys/{api_key_id}")
async def delete_key(api_key_id: str, project: NamedProject, session: ControlTransaction) -> KeyDeleted:
    """Revokes a key; within seconds nobody can use it."""
    await issue.revoke_key(session, project, api_key_id)
    return KeyDeleted(id=api_key_id)


@router.post("/service_accounts", response_model_exclude_none=True)
async def create_account(body: NewAccount, project: NamedProject, session: ControlTransaction) -> CreatedAccount:
    """Makes a service account, with a key unless only the account is asked for."""
    alone = bool(body.create_service_account_only)
    row = await service_accounts.create(session, project, body.name, "none" if alone else "member")
    shown = Account.of(row).model_dump()
    if alone:
        return CreatedAccount(**shown)
    seconds = body.expires_in_seconds
    key, value = await issue.issue_key(session, project, "Secret Key", seconds=seconds, service_account=row.id)
    return CreatedAccount(**shown, api_key=AccountKey.of(key, value))


@router.get("/service_accounts")
async def list_accounts(
    project: NamedProject, session: ControlTransaction, after: str | None = None, limit: Limit = 20
) -> AccountPage:
    """The project's service accounts, newest first."""
    rows = await service_accounts.list_accounts(session, project, Cursor(after=after, limit=limit))
    return page(rows, limit, Account.of)


@router.get("/service_accounts/{account_id}")
async def get_account(account_id: str, project: NamedProject, session: ControlTransaction) -> Account:
    """One service account."""
    return Account.of(await service_accounts.find(session, project, account_id))


@router.post("/service_accounts/{account_id}")
async def rename_account(account_id: str, body: Named, project: NamedProject, session: ControlTransaction) -> Account:
    """Gives a service account another name."""
    return Account.of(await service_accounts.rename(session, project, account_id, body.name))


@router.delete("/service_accounts/{account_id}")
async def delete_account(account_id: str, project: NamedProject, session: ControlTransaction) -> AccountDeleted:
    """Ends a service account and its keys."""
    await service_accounts.delete(session, project, account_id)
    return AccountDeleted(id=account_id)
