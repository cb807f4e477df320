"""The states of a job: the only writer of `jobs.status`, and what its owner may ask of it.

Creating is in `create`, leasing and finishing in `service.leases`; both change states through `transition`.
"""

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from service.contracts.job import ALLOWED_TRANSITIONS, TERMINAL, JobStatus
from service.db import TenantSession
from service.errors import InvalidRequest, NotFound
from service.jobs.events import Note, write
from service.jobs.models import JobRow
from service.tenants import audit
from service.webhooks import outbox
from service.webhooks.outbox import EventType

ANNOUNCED: dict[JobStatus, EventType] = {
    "succeeded": "fine_tuning.job.succeeded",
    "failed": "fine_tuning.job.failed",
    "cancelled": "fine_tuning.job.cancelled",
}
READY = Note("Files validated, moving job to queued state")
CANCELLED = Note("Fine-tuning job cancelled")
PAUSED = Note("Fine-tuning job paused")
RESUMED = Note("Fine-tuning job resumed, moving job to queued state")


async def find(session: TenantSession, job_id: str) -> JobRow:
    """The tenant's job. Raises NotFound for an unknown and for a foreign id alike."""
    job = await session.scalar(select(JobRow).where(JobRow.id == job_id, JobRow.project_id == session.project_id))
    if job is None:
        raise _unknown(job_id)
    return job


async def lock(session: AsyncSession, job_id: str) -> JobRow | None:
    """The job as it is now, held against every other writer until the transaction ends."""
    query = select(JobRow).where(JobRow.id == job_id).with_for_update()
    return await session.scalar(query.execution_options(populate_existing=True))


async def transition(
    session: AsyncSession, job: JobRow, to: JobStatus, *notes: Note, error: dict[str, Any] | None = None
) -> None:
    """Moves a locked job to another state and writes what happened into its history."""
    status: JobStatus = job.status  # pyright: ignore[reportAssignmentType]  (the column holds nothing else)
    if to not in ALLOWED_TRANSITIONS[status]:
        raise RuntimeError(f"{job.id} cannot go from {status} to {to}")
    job.status = to
    if to == "running":
        job.phase = "preparing"
        job.pace_since = None
    else:
        if status == "running":
            held = func.extract("epoch", func.clock_timestamp() - JobRow.leased_at)
            job.leased_seconds = JobRow.leased_seconds + func.coalesce(held, 0)
        job.phase = "finished" if to in TERMINAL else "waiting"
        job.want = "run"
        job.lease_owner = job.lease_until = job.leased_at = None
    if to in TERMINAL:
        job.finished_at = func.coalesce(JobRow.finished_at, func.clock_timestamp())
        job.error = error
    await write(session, job, *notes)
    if to in ANNOUNCED:
        await outbox.emit(session, job.project_id, ANNOUNCED[to], {"id": job.id})


async def fail(session: AsyncSession, job: JobRow, code: str, message: str, param: str | None = None) -> None:
    """Ends a locked job with an error that its owner reads in the job and in its events."""
    error = {"code": code, "message": message, "param": param}
    note = Note(message, "error", {"error_code": code, "error_param": param})
    await transition(session, job, "failed", note, error=error)


async def cancel(session: TenantSession, job_id: str) -> JobRow:
    """Ends a waiting job at once, and asks the trainer of a running one to stop. May be repeated.

    From then on it can end in no other way, whatever its trainer reports, so its owner is told `cancelled` at once.
    """
    job = await _lock_own(session, job_id)
    if job.status == "running":
        if job.want != "cancel":
            job.want, job.finished_at = "cancel", func.clock_timestamp()
            await write(session, job, Note("Fine-tuning job cancellation requested"))
    elif job.status != "cancelled":
        _refuse_ended(job, "cancelled", "job_not_cancellable")
        await transition(session, job, "cancelled", CANCELLED)
    await audit.note(session, "fine_tuning.job.cancelled", job.id)
    return await _as_stored(session, job)


async def pause(session: TenantSession, job_id: str) -> JobRow:
    """Holds a queued job back, and asks the trainer of a running one to save and stop. May be repeated.

    One that waits for its files is paused as soon as they are there.
    """
    job = await _lock_own(session, job_id)
    _refuse_ended(job, "paused", "job_not_pausable")
    if job.status == "queued":
        await transition(session, job, "paused", PAUSED)
    elif job.status != "paused" and job.want == "run":
        job.want = "pause"
        await write(session, job, Note("Fine-tuning job pause requested"))
    await audit.note(session, "fine_tuning.job.paused", job.id)
    return await _as_stored(session, job)


async def resume(session: TenantSession, job_id: str) -> JobRow:
    """Queues a paused job again, or takes back a pause that has not come into effect. May be repeated."""
    job = await _lock_own(session, job_id)
    _refuse_ended(job, "resumed", "job_not_resumable")
    if job.status == "paused":
        job.not_before = func.clock_timestamp()
        await transition(session, job, "queued", RESUMED)
    elif job.want == "pause":
        job.want = "run"
        await write(session, job, Note("Fine-tuning job pause withdrawn"))
    await audit.note(session, "fine_tuning.job.resumed", job.id)
    return await _as_stored(session, job)


def _refuse_ended(job: JobRow, verb: str, code: str) -> None:
    if job.status in TERMINAL or job.want == "cancel":
        state = "is being cancelled" if job.want == "cancel" else f"has status '{job.status}'"
        raise InvalidRequest(f"Job '{job.id}' {state} and cannot be {verb}.", code=code, param="fine_tuning_job_id")


async def _lock_own(session: TenantSession, job_id: str) -> JobRow:
    job = await lock(session, job_id)
    if job is None or job.project_id != session.project_id:
        raise _unknown(job_id)
    return job


async def _as_stored(session: TenantSession, job: JobRow) -> JobRow:
    """Reads back what the database's clock filled in."""
    await session.flush()
    await session.refresh(job)
    return job


def _unknown(job_id: str) -> NotFound:
    return NotFound(
        f"Could not find fine-tuning job: {job_id}", code="fine_tuning_job_not_found", param="fine_tuning_job_id"
    )
