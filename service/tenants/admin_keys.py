"""Keys of administrators, made with the one in the configuration. Looked up at each use: administrators are few."""

import hmac
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import Select, func, or_, select, update

from service.contracts.ids import new_key_id
from service.db import ControlSession, Database
from service.errors import NotFound
from service.listing import Cursor, Order, rows_of
from service.tenants import audit
from service.tenants.keys import ADMIN_PREFIX, hash_key, make_key, public_id_of, redact
from service.tenants.models import AdminKeyRow


async def prove(database: Database, key: str) -> str | None:
    """The id of a live key, or None. Notes that it was used."""
    public_id = public_id_of(key, ADMIN_PREFIX)
    if public_id is None:
        return None
    async with database.control() as session:
        row = await session.scalar(_live().where(AdminKeyRow.public_id == public_id))
        if row is None or not hmac.compare_digest(row.hash, hash_key(key)):
            return None
        await session.execute(update(AdminKeyRow).where(AdminKeyRow.id == row.id).values(last_used_at=func.now()))
        return row.id


async def create(session: ControlSession, name: str, seconds: int | None) -> tuple[AdminKeyRow, str]:
    """A new key, and its value, which exists in the answer to this call only."""
    value = make_key(ADMIN_PREFIX)
    row = AdminKeyRow(
        id=new_key_id(),
        public_id=public_id_of(value, ADMIN_PREFIX),
        hash=hash_key(value),
        name=name,
        redacted_value=redact(value, ADMIN_PREFIX),
        expires_at=None if seconds is None else func.now() + timedelta(seconds=seconds),
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    await audit.note(session, "admin_api_key.created", row.id, name=name)
    return row, value


async def find(session: ControlSession, key_id: str) -> AdminKeyRow:
    row = await session.scalar(_live().where(AdminKeyRow.id == key_id))
    if row is None:
        raise NotFound(f"No such admin API key: {key_id}.", param="key_id")
    return row


async def list_keys(session: ControlSession, after: str | None, limit: int, order: Order) -> Sequence[AdminKeyRow]:
    cursor = Cursor(after=after, limit=limit, order=order)
    begin = select(AdminKeyRow.created_at, AdminKeyRow.id).where(AdminKeyRow.id == after)
    return await rows_of(session, _live(), (AdminKeyRow.created_at, AdminKeyRow.id), cursor, begin)


async def revoke(session: ControlSession, key_id: str) -> None:
    row = await find(session, key_id)
    await session.execute(update(AdminKeyRow).where(AdminKeyRow.id == row.id).values(revoked_at=func.now()))
    await audit.note(session, "admin_api_key.deleted", row.id)


def _live() -> Select[AdminKeyRow]:
    alive = or_(AdminKeyRow.expires_at.is_(None), AdminKeyRow.expires_at > func.now())
    return select(AdminKeyRow).where(AdminKeyRow.revoked_at.is_(None), alive)
