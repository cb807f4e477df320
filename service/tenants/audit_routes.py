"""The administrator's route of the audit log, in the shape of OpenAI's."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict

from service.listing import Cursor, Item, Page, page
from service.resources import ControlTransaction
from service.tenants.audit import AuditFilter, list_entries
from service.tenants.models import AuditRow
from service.tenants.schemas import seconds

router = APIRouter()


class KeyActor(BaseModel):
    id: str | None = None
    type: Literal["service_account"] = "service_account"
    service_account: dict[str, str] | None = None


class Session(BaseModel):
    ip_address: str | None = None


class AuditActor(BaseModel):
    """A key, from an address; neither where the service did it by itself."""

    type: Literal["api_key", "session"]
    api_key: KeyActor | None = None
    session: Session | None = None


class AuditProject(BaseModel):
    id: str


class Entry(Item):
    """What was done is in the field that has the name of `type`."""

    model_config = ConfigDict(extra="allow")

    object: Literal["organization.audit_log"] = "organization.audit_log"
    type: str
    effective_at: int
    actor: AuditActor
    project: AuditProject | None = None
    request_id: str | None = None

    @classmethod
    def of(cls, row: AuditRow) -> "Entry":
        told: dict[str, Any] = {row.type: {"id": row.subject, "data": row.details}}
        return cls(
            id=row.id,
            type=row.type,
            effective_at=seconds(row.created_at),
            actor=_actor(row.actor),
            project=None if row.project_id is None else AuditProject(id=row.project_id),
            request_id=row.request_id,
            **told,
        )


@router.get("/audit_logs")
async def list_audit_logs(
    session: ControlTransaction,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    project_ids: Annotated[list[str] | None, Query(alias="project_ids[]")] = None,
    event_types: Annotated[list[str] | None, Query(alias="event_types[]")] = None,
    actor_ids: Annotated[list[str] | None, Query(alias="actor_ids[]")] = None,
    resource_ids: Annotated[list[str] | None, Query(alias="resource_ids[]")] = None,
    since: Annotated[int | None, Query(alias="effective_at[gte]", ge=0, le=2**33)] = None,
    until: Annotated[int | None, Query(alias="effective_at[lt]", ge=0, le=2**33)] = None,
) -> Page[Entry]:
    """Who changed what, newest first."""
    wanted = AuditFilter(project_ids, event_types, actor_ids, resource_ids, since, until)
    return page(await list_entries(session, Cursor(after=after, limit=limit), wanted), limit, Entry.of)


def _actor(actor: dict[str, Any]) -> AuditActor:
    if actor["type"] == "service":
        return AuditActor(type="session", session=Session())
    account = actor.get("service_account_id")
    key = KeyActor(id=actor.get("key_id"), service_account=None if account is None else {"id": account})
    return AuditActor(type="api_key", api_key=key, session=Session(ip_address=actor.get("ip_address")))
