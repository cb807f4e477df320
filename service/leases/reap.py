"""Takes jobs back from workers that stopped renewing. Runs in every service process; any number may run at once."""

import asyncio
import contextlib
import logging
from datetime import timedelta

from sqlalchemy import func, select

from service.adapters.removal import sweep
from service.contracts.ids import JobId, ProjectId
from service.contracts.job import TERMINAL
from service.contracts.manifest import CheckpointManifest
from service.db import ControlSession, DatabaseUnavailable
from service.jobs import lifecycle
from service.jobs.events import Note
from service.jobs.models import JobRow
from service.leases import checkpoints, fairness
from service.resources import Resources

BATCH = 50
LONGEST_DELAY_SECONDS = 60
SWEEP_SECONDS = 600.0

log = logging.getLogger("service.leases")


async def run(resources: Resources) -> None:
    """Reaps until cancelled. An outage of the database only delays it, and one of the store does not concern it."""
    ended: asyncio.Queue[JobRow] = asyncio.Queue()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_keep_reaping(resources, ended))
        tasks.create_task(_keep_cleaning(resources, ended))


async def _keep_reaping(resources: Resources, ended: asyncio.Queue[JobRow]) -> None:
    while True:
        try:
            for job in await reap(resources):
                if job.status in TERMINAL:
                    ended.put_nowait(job)
        except DatabaseUnavailable as error:
            log.warning("lost leases are looked for again later: %s", error)
        await asyncio.sleep(resources.settings.reap_seconds)


async def _keep_cleaning(resources: Resources, ended: asyncio.Queue[JobRow]) -> None:
    """Deletes objects that nothing refers to. A task of its own: a store that hangs must not stop the reaper."""
    while True:
        try:
            await sweep(resources)
        except DatabaseUnavailable as error:
            log.warning("deleted adapters are swept later: %s", error)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SWEEP_SECONDS):
                while True:
                    job = await ended.get()
                    await checkpoints.delete_all(resources.store, ProjectId(job.project_id), JobId(job.id))


async def reap(resources: Resources) -> list[JobRow]:
    """Takes back every job whose lease has run out; returns them as they are then."""
    reaped: list[JobRow] = []
    while True:
        async with resources.database.control() as session:
            jobs = await _expired(session)
            for job in jobs:
                await _take_back(session, job, resources.settings.max_lost_workers)
        reaped += jobs
        if len(jobs) < BATCH:
            break
    async with resources.database.control() as session:
        await fairness.rest(session)
    return reaped


async def _expired(session: ControlSession) -> list[JobRow]:
    query = (
        select(JobRow)
        .where(JobRow.status == "running", JobRow.lease_until < func.now())
        .order_by(JobRow.lease_until)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    return list(await session.scalars(query))


async def _take_back(session: ControlSession, job: JobRow, max_lost_workers: int) -> None:
    """The epoch stays until the next claim, and the status alone fences the lost worker off until then."""
    worker = job.lease_owner
    job.lost_workers += 1
    if job.want == "cancel":
        await lifecycle.transition(session, job, "cancelled", lifecycle.CANCELLED)
    elif job.lost_workers >= max_lost_workers:
        message = f"{job.lost_workers} workers in a row were lost while training this job, without a newer checkpoint."
        await lifecycle.fail(session, job, "worker_lost", message)
    elif job.want == "pause":
        await lifecycle.transition(session, job, "paused", lifecycle.PAUSED)
    else:
        delay = min((job.lost_workers - 1) ** 2, LONGEST_DELAY_SECONDS)
        job.not_before = func.clock_timestamp() + timedelta(seconds=delay)
        await lifecycle.transition(session, job, "queued", _lost(job, worker))


def _lost(job: JobRow, worker: str | None) -> Note:
    step = CheckpointManifest.model_validate(job.checkpoint).step if job.checkpoint else 0
    data = {"reason": "worker_lost", "worker": worker, "lost_workers": job.lost_workers, "resumes_at_step": step}
    return Note(f"The worker was lost; the job is queued again and resumes at step {step}", "warn", data)
