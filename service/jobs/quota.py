"""What a project may have waiting, and may be going to spend on it: asked in the transaction that adds a job."""

from sqlalchemy import func, select, text

from service.db import TenantSession
from service.errors import RateLimited
from service.jobs.models import JobRow
from service.limits.spend import require_unreserved
from service.settings import ServiceSettings
from service.tenants.models import ProjectRow

WAITING = ("validating_files", "queued", "paused")
# So that of two jobs created at once the second one counts the first.
LOCK = text("select pg_advisory_xact_lock(hashtextextended('jobs ' || :project, 0))")


async def require_room(session: TenantSession, settings: ServiceSettings, job: JobRow) -> None:
    """Raises RateLimited where the project has as many jobs waiting as it may, or no money left for this one."""
    await session.execute(LOCK, {"project": session.project_id})
    own = select(ProjectRow.max_queued_jobs).where(ProjectRow.id == session.project_id)
    limit = await session.scalar(own)
    limit = settings.max_queued_jobs if limit is None else limit
    count = select(func.count()).where(JobRow.project_id == session.project_id, JobRow.status.in_(WAITING))
    waiting = await session.scalar(count) or 0
    if waiting >= limit:
        raise RateLimited(
            f"This project has {waiting} fine-tuning jobs waiting, as many as it may have; let some run or cancel "
            "some, or ask your administrator for more.",
            code="too_many_queued_jobs",
            headers={"x-should-retry": "false"},
        )
    await require_unreserved(session, settings, (job.model, job.expected_tokens))
