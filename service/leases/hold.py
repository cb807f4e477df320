"""The fence: a worker's write passes only while its epoch holds the job. The database's clock is the only clock."""

from datetime import timedelta

from sqlalchemy import func

from service.contracts.worker import Control
from service.db import ControlSession
from service.errors import LeaseLost
from service.jobs import lifecycle
from service.jobs.models import JobRow
from service.leases import fairness
from service.resources import Resources


async def held(session: ControlSession, job_id: str, epoch: int) -> JobRow:
    """The job, locked until the transaction ends. Raises LeaseLost where another epoch or nobody holds it."""
    job = await lifecycle.lock(session, job_id)
    if job is None or job.epoch != epoch or job.status != "running":
        raise LeaseLost
    return job


def extend(job: JobRow, resources: Resources) -> Control:
    """Starts the lease anew and tells the worker what the job's owner wants."""
    seconds = resources.settings.lease_ttl_seconds
    job.lease_until = func.clock_timestamp() + timedelta(seconds=seconds)
    return Control.model_validate({"want": job.want, "ttl_seconds": seconds})


async def meter(session: ControlSession, job: JobRow, trained_tokens: int) -> None:
    """Notes progress, and charges the project for tokens beyond those it was charged for; repeated work is free."""
    job.trained_tokens = max(job.trained_tokens, trained_tokens)
    fresh = trained_tokens - job.metered_tokens
    if fresh > 0:
        job.metered_tokens = trained_tokens
        await session.flush()
        await fairness.charge(session, job.project_id, fresh)
