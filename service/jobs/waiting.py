"""Jobs that wait for their files: planned and queued once the files are processed, failed where one proves unfit.

Runs in every service process. Whatever was put together by whomever is found by looking, so that nobody need be told
and any process may be killed at any moment.
"""

import asyncio
import logging
from collections.abc import Sequence

from sqlalchemy import exists, select

from service.contracts.ids import JobId, ProjectId
from service.db import ControlSession, DatabaseUnavailable, TenantSession
from service.errors import InvalidRequest
from service.files.models import FileRow
from service.jobs import lifecycle
from service.jobs.create import take_up
from service.jobs.draft import Draft
from service.jobs.graders import OnSuccess
from service.jobs.lifecycle import READY
from service.jobs.models import JobRow
from service.jobs.plan import Sources, completed
from service.resources import Resources

POLL_SECONDS = 1.0
BATCH = 50

log = logging.getLogger("service.jobs")


async def run(resources: Resources) -> None:
    while True:
        try:
            while await settle(resources) == BATCH:
                pass
        except DatabaseUnavailable as error:
            log.warning("jobs that wait for files are looked at later: %s", error)
        await asyncio.sleep(POLL_SECONDS)


async def settle(resources: Resources) -> int:
    """Plans up to BATCH jobs whose files are processed; gives how many there were. Any number may do so at once."""
    async with resources.database.control() as session:
        ready = await _ready(session, [base.name for base in resources.settings.base_models])
    for project, job_id in ready:
        async with resources.database.tenant(project) as session:
            await _settle(session, resources, job_id)
    return len(ready)


async def _ready(session: ControlSession, bases: list[str]) -> Sequence[tuple[ProjectId, JobId]]:
    """The oldest; those of a base that this service no longer has wait on."""
    held_out = JobRow.on_success["evaluation"]["file_id"].astext
    processed_still = exists().where(
        FileRow.project_id == JobRow.project_id,
        FileRow.id.in_((JobRow.training_file, JobRow.validation_file, held_out)),
        FileRow.status == "uploaded",
    )
    query = select(JobRow.project_id, JobRow.id).where(JobRow.status == "validating_files", JobRow.model.in_(bases))
    rows = await session.execute(query.where(~processed_still).order_by(JobRow.created_at).limit(BATCH))
    return [(ProjectId(project), JobId(job)) for project, job in rows]


async def _settle(session: TenantSession, resources: Resources, job_id: JobId) -> None:
    job = await lifecycle.lock(session, job_id)
    if job is None or job.status != "validating_files":
        return
    base = resources.base_model(job.model)
    assert base is not None
    draft, sources = Draft.model_validate(job.draft), await _sources(session, job)
    try:
        take_up(job, await completed(session, resources, job_id, draft, base, sources))
    except InvalidRequest as error:
        await lifecycle.fail(session, job, error.code or "invalid_request", error.message, error.param)
        return
    paused = job.want == "pause"
    await lifecycle.transition(session, job, "queued", READY)
    if paused:
        await lifecycle.transition(session, job, "paused", lifecycle.PAUSED)


async def _sources(session: TenantSession, job: JobRow) -> Sources:
    """Also of files deleted since, which are kept for unfinished jobs."""
    held_out = OnSuccess.model_validate(job.on_success).evaluation.file_id if job.on_success else None
    wanted = [name for name in (job.training_file, job.validation_file, held_out) if name is not None]
    query = select(FileRow).where(FileRow.project_id == session.project_id, FileRow.id.in_(wanted))
    files = {file.id: file for file in await session.scalars(query)}
    validation = files[job.validation_file] if job.validation_file else None
    return Sources(files[job.training_file], validation, files[held_out] if held_out else None)
