"""When unfinished jobs will be done, and what they wait for. Looked up for a whole page of jobs at once.

A tenant sees its own queue alone: `queue_position` counts the project's jobs for the same base, since the turns between
projects are shared out by weight and not by arrival. Nothing here tells one tenant of another's jobs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import exists, func, select

from service.contracts.job import TERMINAL, JobSpec
from service.db import TenantSession
from service.jobs.models import JobRow, PaceRow, WorkerRow
from service.resources import Resources
from service.tenants.models import ProjectRow

WORKER_SECONDS = 60.0
"""A worker asks at least each 30 s, or holds a lease."""

Blocker = Literal["file", "paused", "retry_delay", "base_unavailable", "tenant_limit", "capacity"]


@dataclass(frozen=True)
class Outlook:
    """What is not known is None."""

    estimated_finish: datetime | None = None
    queue_position: int | None = None
    blocked_by: Blocker | None = None


@dataclass(frozen=True)
class Queued:
    """One place in the project's queue for a base. `ahead` are the tokens of the jobs before it."""

    position: int
    ahead: int
    pace: PaceRow | None
    served: bool


@dataclass(frozen=True)
class Project:
    now: datetime
    running: int
    limit: int


async def outlooks(session: TenantSession, resources: Resources, jobs: Sequence[JobRow]) -> dict[str, Outlook]:
    """Of each job; three queries at most, and none for jobs that have ended."""
    if all(job.status in TERMINAL for job in jobs):
        return {job.id: Outlook() for job in jobs}
    project = await _project(session)
    waiting = [job.id for job in jobs if job.status == "queued"]
    queue = await _queue(session, waiting) if waiting else {}
    return {job.id: _outlook(resources, job, project, queue.get(job.id)) for job in jobs}


async def outlook(session: TenantSession, resources: Resources, job: JobRow) -> Outlook:
    return (await outlooks(session, resources, [job]))[job.id]


async def _project(session: TenantSession) -> Project:
    own = JobRow.project_id == session.project_id
    running = select(func.count()).select_from(JobRow).where(own, JobRow.status == "running").scalar_subquery()
    limit = ProjectRow.max_running_jobs
    query = select(func.now(), running, limit).where(ProjectRow.id == session.project_id)
    return Project(*(await session.execute(query)).one())


async def _queue(session: TenantSession, wanted: list[str]) -> dict[str, Queued]:
    """Places as claims go, by priority and then by age."""
    fingerprint = JobRow.spec["base_fingerprint"].astext
    order: dict[str, Any] = {
        "partition_by": (JobRow.model, fingerprint),
        "order_by": (JobRow.priority.desc(), JobRow.created_at, JobRow.id),
    }
    places = (
        select(
            JobRow.id,
            JobRow.model,
            fingerprint.label("fingerprint"),
            func.row_number().over(**order).label("position"),
            (func.sum(JobRow.expected_tokens).over(**order, rows=(None, 0)) - JobRow.expected_tokens).label("ahead"),
        )
        .where(JobRow.project_id == session.project_id, JobRow.status == "queued")
        .subquery()
    )
    lately = WorkerRow.seen_at > func.now() - timedelta(seconds=WORKER_SECONDS)
    same = (WorkerRow.base_model == places.c.model) & (WorkerRow.base_fingerprint == places.c.fingerprint)
    paced = (PaceRow.base_model == places.c.model) & (PaceRow.base_fingerprint == places.c.fingerprint)
    query = (
        select(places.c.id, places.c.position, places.c.ahead, PaceRow, exists().where(same, lately))
        .join(PaceRow, paced, isouter=True)
        .where(places.c.id.in_(wanted))
    )
    rows = (await session.execute(query)).all()
    return {job: Queued(int(position), int(ahead), pace, served) for job, position, ahead, pace, served in rows}


def _outlook(resources: Resources, job: JobRow, project: Project, place: Queued | None) -> Outlook:
    match job.status:
        case "validating_files":
            return Outlook(blocked_by="file")
        case "paused":
            return Outlook(blocked_by="paused")
        case "running":
            return Outlook(estimated_finish=_of_running(job, project.now))
        case "queued" if place is not None:
            blocker = _blocker(resources, job, project, place)
            finish = None if blocker == "base_unavailable" else _of_queued(job, project, place)
            return Outlook(finish, place.position, blocker)
        case _:
            return Outlook()


def _of_running(job: JobRow, now: datetime) -> datetime | None:
    """From the steps done under this lease and how long they took."""
    done = job.step - job.pace_step
    if job.pace_since is None or done <= 0 or job.total_steps <= 0 or job.want != "run":
        return None
    return now + (now - job.pace_since) * (max(0, job.total_steps - job.step) / done)


def _of_queued(job: JobRow, project: Project, place: Queued) -> datetime | None:
    """The work ahead is shared by as many jobs as the project has at work now."""
    if place.pace is None:
        return None
    tokens = place.ahead / max(1, project.running) + job.expected_tokens
    return max(project.now, job.not_before) + timedelta(seconds=tokens * place.pace.seconds_median)


def _blocker(resources: Resources, job: JobRow, project: Project, place: Queued) -> Blocker:
    base = resources.base_model(job.model)
    if base is None or base.fingerprint != JobSpec.model_validate(job.spec).base_fingerprint or not place.served:
        return "base_unavailable"
    if job.not_before > project.now:
        return "retry_delay"
    if project.running >= project.limit:
        return "tenant_limit"
    return "capacity"
