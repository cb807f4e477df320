"""Keys of a project: issued, listed, restricted, rotated, revoked. What is kept of a key is in `keys`."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import Select, func, or_, select, update

from service.contracts.ids import new_key_id
from service.db import ControlSession
from service.errors import Conflict, NotFound
from service.listing import Cursor, rows_of
from service.notifications import notify
from service.tenants import audit
from service.tenants.keys import hash_key, make_key, public_id_of, redact
from service.tenants.models import KeyRow, ProjectRow


async def issue_key(
    session: ControlSession,
    project: ProjectRow,
    name: str,
    *,
    scopes: Sequence[str] = (),
    seconds: int | None = None,
    service_account: str | None = None,
) -> tuple[KeyRow, str]:
    """A new key, and its value, which exists in the answer to this call only. It lives for `seconds`, or for good."""
    if project.status != "active":
        raise Conflict("The project is archived; it takes no new keys.", code="project_archived")
    value = make_key()
    row = KeyRow(
        id=new_key_id(),
        project_id=project.id,
        public_id=public_id_of(value),
        hash=hash_key(value),
        name=name,
        redacted_value=redact(value),
        scopes=sorted(set(scopes)),
        service_account_id=service_account,
        expires_at=None if seconds is None else func.now() + timedelta(seconds=seconds),
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    await audit.note(session, "api_key.created", row.id, project.id, name=name, scopes=row.scopes)
    return row, value


async def find_key(session: ControlSession, project: ProjectRow, key_id: str) -> KeyRow:
    row = await session.scalar(_live(project).where(KeyRow.id == key_id))
    if row is None:
        raise NotFound(f"No such API key: {key_id}.", param="api_key_id")
    return row


async def list_keys(session: ControlSession, project: ProjectRow, cursor: Cursor) -> Sequence[KeyRow]:
    begin = select(KeyRow.created_at, KeyRow.id).where(KeyRow.project_id == project.id, KeyRow.id == cursor.after)
    return await rows_of(session, _live(project), (KeyRow.created_at, KeyRow.id), cursor, begin)


async def change_key(
    session: ControlSession,
    project: ProjectRow,
    key_id: str,
    *,
    name: str | None,
    scopes: Sequence[str] | None,
    seconds: int | None,
) -> KeyRow:
    """What is None stays as it is. Effective as soon as a revocation is."""
    row = await find_key(session, project, key_id)
    asked = {"name": name, "scopes": None if scopes is None else sorted(set(scopes))}
    values = {field: value for field, value in asked.items() if value is not None}
    expiry = {} if seconds is None else {"expires_at": func.now() + timedelta(seconds=seconds)}
    if values or expiry:
        await session.execute(update(KeyRow).where(KeyRow.id == row.id).values(**values, **expiry))
        await session.refresh(row)
        await notify(session, "key")
        changes = {**values, **({} if seconds is None else {"expires_in_seconds": seconds})}
        await audit.note(session, "api_key.updated", row.id, project.id, **changes)
    return row


async def rotate_key(
    session: ControlSession, project: ProjectRow, key_id: str, grace_seconds: int
) -> tuple[KeyRow, str]:
    """A new key with the old one's name, scopes and owner. The old one goes on for `grace_seconds` and then ends."""
    old = await find_key(session, project, key_id)
    lifetime = None if old.expires_at is None else int((old.expires_at - old.created_at).total_seconds())
    row, value = await issue_key(
        session,
        project,
        old.name,
        scopes=old.scopes,
        seconds=lifetime,
        service_account=old.service_account_id,
    )
    end = func.now() + timedelta(seconds=grace_seconds)
    ends = func.least(KeyRow.expires_at, end)
    await session.execute(update(KeyRow).where(KeyRow.id == old.id).values(expires_at=ends))
    await notify(session, "key")
    await audit.note(session, "api_key.rotated", old.id, project.id, successor=row.id, grace_seconds=grace_seconds)
    return row, value


async def revoke_key(session: ControlSession, project: ProjectRow, key_id: str) -> None:
    """Effective at once where the notification arrives, within the caches' few seconds everywhere."""
    row = await find_key(session, project, key_id)
    await session.execute(update(KeyRow).where(KeyRow.id == row.id).values(revoked_at=func.now()))
    await notify(session, "key")
    await audit.note(session, "api_key.deleted", row.id, project.id)


def _live(project: ProjectRow) -> Select[KeyRow]:
    alive = or_(KeyRow.expires_at.is_(None), KeyRow.expires_at > func.now())
    return select(KeyRow).where(KeyRow.project_id == project.id, KeyRow.revoked_at.is_(None), alive)
