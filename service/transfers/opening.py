"""Finding transfers, and how many a project may have open."""

from collections.abc import Sequence

from sqlalchemy import and_, func, or_, select

from service.db import TenantSession
from service.errors import NotFound, RateLimited
from service.listing import Cursor, rows_of
from service.transfers.models import TransferRow

IMPORTS = ("import",)
EXPORTS = ("peft", "merged")


async def find(session: TenantSession, transfer: str, kinds: Sequence[str]) -> TransferRow:
    """The caller's. Raises NotFound for an unknown and a foreign one alike."""
    own = select(TransferRow).where(TransferRow.id == transfer, TransferRow.project_id == session.project_id)
    row = await session.scalar(own.where(TransferRow.kind.in_(kinds)))
    if row is None:
        what = "import" if kinds == IMPORTS else "export"
        raise NotFound(f"There is no {what} '{transfer[:64]}'.", code=f"{what}_not_found", param="id")
    return row


async def list_imports(session: TenantSession, cursor: Cursor) -> Sequence[TransferRow]:
    columns = (TransferRow.created_at, TransferRow.id)
    own = select(TransferRow).where(TransferRow.project_id == session.project_id, TransferRow.kind.in_(IMPORTS))
    begin = select(*columns).where(TransferRow.project_id == session.project_id, TransferRow.id == cursor.after)
    return await rows_of(session, own, columns, cursor, begin)


async def require_room(session: TenantSession, most: int) -> None:
    """Raises RateLimited where the project has `most` transfers under way or lying there."""
    lock = func.pg_advisory_xact_lock(func.hashtextextended("transfers " + session.project_id, 0))
    await session.execute(select(lock))
    under_way = TransferRow.status.in_(("queued", "running"))
    lying = and_(TransferRow.kind == "merged", TransferRow.expires_at > func.now())
    count = select(func.count()).where(TransferRow.project_id == session.project_id, or_(under_way, lying))
    if (await session.scalar(count) or 0) >= most:
        raise RateLimited(
            f"This project has {most} imports and exports under way or merged exports waiting to be fetched, as many "
            "as it may; wait for one to end.",
            code="too_many_transfers",
        )
