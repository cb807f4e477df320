"""How much a project may store: everything that it still has in the store, and what it has announced to bring."""

from sqlalchemy import text

from service.db import TenantSession
from service.errors import RateLimited

# Text, because uploads lie above this package. An advisory lock, so that of two who ask at once the second one sees
# what the first one brings.
LOCK = text("select pg_advisory_xact_lock(hashtextextended('storage ' || :project, 0))")
LIMIT = text("select max_storage_bytes from projects where id = :project")
STORED = text(
    """
    select coalesce((select sum(bytes) from files where project_id = :project and purged_at is null), 0)
      + coalesce((
          select sum(bytes) from uploads
          where project_id = :project and status = 'pending' and expires_at > now()), 0)
    """
)


async def require_room(session: TenantSession, size: int, default_limit: int | None) -> None:
    """Called in the transaction that reserves `size` bytes. Raises RateLimited where the project's limit is passed."""
    project = {"project": session.project_id}
    limit = await session.scalar(LIMIT, project)
    limit = default_limit if limit is None else int(limit)
    if limit is None:
        return
    await session.execute(LOCK, project)
    stored = int(await session.scalar(STORED, project) or 0)
    if stored + size > limit:
        raise RateLimited(
            f"The project stores {stored} of {limit} bytes and has no room for {size} more; delete files, "
            "wait a minute until their bytes are gone, or ask your administrator for more.",
            code="insufficient_quota",
            headers={"x-should-retry": "false"},
        )
