"""Keys of a project: issued, listed, revoked. What a key looks like and what is kept of it is in `keys`."""

from collections.abc import Sequence

from sqlalchemy import func, select, update

from service.contracts.ids import new_key_id
from service.db import ControlSession
from service.errors import Conflict, NotFound
from service.listing import Cursor, rows_of
from service.notifications import notify
from service.tenants.keys import hash_key, make_key, public_id_of, redact
from service.tenants.models import KeyRow, ProjectRow


async def issue_key(session: ControlSession, project: ProjectRow, name: str) -> tuple[KeyRow, str]:
    """A new key, and its value, which exists in the answer to this call only."""
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
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    return row, value


async def find_key(session: ControlSession, project: ProjectRow, key_id: str) -> KeyRow:
    live = select(KeyRow).where(KeyRow.project_id == project.id, KeyRow.revoked_at.is_(None))
    row = await session.scalar(live.where(KeyRow.id == key_id))
    if row is None:
        raise NotFound(f"No such API key: {key_id}.", param="api_key_id")
    return row


async def list_keys(session: ControlSession, project: ProjectRow, cursor: Cursor) -> Sequence[KeyRow]:
    live = select(KeyRow).where(KeyRow.project_id == project.id, KeyRow.revoked_at.is_(None))
    begin = select(KeyRow.created_at, KeyRow.id).where(KeyRow.project_id == project.id, KeyRow.id == cursor.after)
    return await rows_of(session, live, (KeyRow.created_at, KeyRow.id), cursor, begin)


async def revoke_key(session: ControlSession, project: ProjectRow, key_id: str) -> None:
    """Effective at once where the notification arrives, within the caches' few seconds everywhere."""
    row = await find_key(session, project, key_id)
    await session.execute(update(KeyRow).where(KeyRow.id == row.id).values(revoked_at=func.now()))
    await notify(session, "key")
