"""The audit log: who changed what, written in the transaction of the change. Entries are only ever added.

The actor is the one that the request's key proved; where there is no request, it is the service itself.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from fastapi import Request
from sqlalchemy import Select, insert, select

from service.contracts.ids import new_audit_id
from service.db import ControlSession, TenantSession
from service.listing import Cursor, rows_of
from service.tenants.models import AuditRow

Session = TenantSession | ControlSession


@dataclass(frozen=True)
class Actor:
    """Whose key it was, and from where. `key_id` is None for the key in the configuration, and for the service."""

    type: Literal["api_key", "admin_key", "service"]
    key_id: str | None = None
    service_account_id: str | None = None
    ip_address: str | None = None
    request_id: str | None = None


_actor: ContextVar[Actor] = ContextVar("actor")


@dataclass(frozen=True)
class AuditFilter:
    project_ids: list[str] | None = None
    event_types: list[str] | None = None
    actor_ids: list[str] | None = None
    resource_ids: list[str] | None = None
    since: int | None = None
    until: int | None = None


def acts(
    request: Request, kind: Literal["api_key", "admin_key"], key_id: str | None, account: str | None = None
) -> None:
    """Says who acts for the rest of this request's task."""
    address = request.client.host if request.client else None
    _actor.set(Actor(kind, key_id, account, address, getattr(request.state, "request_id", None)))


async def note(session: Session, kind: str, subject: str, project: str | None = None, **details: Any) -> None:
    """Adds an entry about `subject`, an id. `details` are what was asked for: never a secret, never a tenant's data."""
    actor = _actor.get(Actor("service"))
    values = {name: value for name, value in asdict(actor).items() if value is not None and name != "request_id"}
    entry = insert(AuditRow).values(
        id=new_audit_id(),
        project_id=session.project_id if isinstance(session, TenantSession) else project,
        type=kind,
        actor=values,
        subject=subject,
        details=details,
        request_id=actor.request_id,
    )
    await session.execute(entry)


async def list_entries(session: ControlSession, cursor: Cursor, wanted: AuditFilter) -> Sequence[AuditRow]:
    begin = select(AuditRow.created_at, AuditRow.id).where(AuditRow.id == cursor.after)
    return await rows_of(session, _filtered(wanted), (AuditRow.created_at, AuditRow.id), cursor, begin)


def _filtered(wanted: AuditFilter) -> Select[AuditRow]:
    query = select(AuditRow)
    key = AuditRow.actor["key_id"].astext
    account = AuditRow.actor["service_account_id"].astext
    if wanted.project_ids is not None:
        query = query.where(AuditRow.project_id.in_(wanted.project_ids))
    if wanted.event_types is not None:
        query = query.where(AuditRow.type.in_(wanted.event_types))
    if wanted.actor_ids is not None:
        query = query.where(key.in_(wanted.actor_ids) | account.in_(wanted.actor_ids))
    if wanted.resource_ids is not None:
        query = query.where(AuditRow.subject.in_(wanted.resource_ids))
    if wanted.since is not None:
        query = query.where(AuditRow.created_at >= datetime.fromtimestamp(wanted.since, UTC))
    if wanted.until is not None:
        query = query.where(AuditRow.created_at < datetime.fromtimestamp(wanted.until, UTC))
    return query
