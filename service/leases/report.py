"""Renewing a lease and reporting progress under it. The answer tells the worker what the job's owner wants."""

from sqlalchemy import func

from service.contracts.worker import Control, RenewRequest, Report
from service.jobs import events
from service.leases.hold import extend, held, meter
from service.resources import Resources


async def renew(resources: Resources, job_id: str, request: RenewRequest) -> Control:
    """Raises LeaseLost where the epoch no longer holds the job."""
    async with resources.database.control() as session:
        return extend(await held(session, job_id, request.epoch), resources)


async def report(resources: Resources, job_id: str, request: Report) -> Control:
    """Takes in progress and events, and renews. A report that arrives twice or late sets nothing back.

    Raises LeaseLost where the epoch no longer holds the job.
    """
    async with resources.database.control() as session:
        job = await held(session, job_id, request.epoch)
        if request.step >= job.step:
            job.phase, job.step = request.phase, request.step
            job.total_steps = request.total_steps
            if request.phase == "training" and job.pace_since is None:
                job.pace_since, job.pace_step = func.clock_timestamp(), request.step
        await events.merge(session, job, request.events)
        await meter(session, job, request.trained_tokens)
        return extend(job, resources)
