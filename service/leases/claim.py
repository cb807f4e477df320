"""Claiming: gives the next job to a worker under a new epoch, with presigned URLs instead of credentials."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select

from service.adapters import registry
from service.contracts.ids import AdapterId, FileId, JobId, ProjectId
from service.contracts.job import FileRef, JobSpec
from service.contracts.layout import adapter_prefix, checkpoint_prefix, file_key
from service.contracts.manifest import AdapterManifest, CheckpointManifest, adapter_id_of
from service.contracts.worker import AdapterRef, CheckpointRef, ClaimRequest, Lease
from service.db import ControlSession
from service.files.models import FileRow
from service.jobs import lifecycle, pace
from service.jobs.events import Note
from service.jobs.models import JobRow
from service.leases import fairness
from service.resources import Resources
from service.tenants.models import ProjectRow

POLL_SECONDS = 0.25
ATTEMPTS = 4
"""Looks at the queue within one transaction; another is needed where the state of the first look was outdated."""


@dataclass(frozen=True)
class Claimed:
    job: JobRow
    training: FileRow
    validation: FileRow | None
    start: AdapterManifest | None


async def claim(resources: Resources, request: ClaimRequest, gone: Callable[[], Awaitable[bool]]) -> Lease | None:
    """The next job for a worker, waiting up to `wait_seconds` for one.

    `gone` tells whether the worker has hung up meanwhile: a job given to nobody would lie idle for a whole lease.
    """
    deadline = time.monotonic() + request.wait_seconds
    async with resources.database.control() as session:
        await pace.seen(session, request.worker, request.base_model, request.base_fingerprint)
    while True:
        async with resources.database.control() as session:
            claimed = await claim_once(session, request, resources.settings.lease_ttl_seconds)
        if claimed is not None:
            return _lease(resources, claimed)
        if time.monotonic() + POLL_SECONDS > deadline:
            return None
        await asyncio.sleep(POLL_SECONDS)
        if resources.ending.is_set() or await gone():
            return None


async def claim_once(session: ControlSession, request: ClaimRequest, ttl_seconds: float) -> Claimed | None:
    """One look at the queue. The lease holds from the commit on."""
    pool = fairness.Pool(request.base_model, request.base_fingerprint)
    for _ in range(ATTEMPTS):
        project = await fairness.next_project(session, pool)
        if project is None:
            return None
        job = await _next_job(session, project, pool)
        if job is not None:
            await _take(session, job, request.worker, ttl_seconds)
            return await _with_files(session, job)
    return None


async def _next_job(session: ControlSession, project: str, pool: fairness.Pool) -> JobRow | None:
    """The project's most urgent due job, locked; None where it has no room left or its jobs are being changed."""
    running = select(func.count()).where(JobRow.project_id == project, JobRow.status == "running").scalar_subquery()
    limit = select(ProjectRow.max_running_jobs).where(ProjectRow.id == project).scalar_subquery()
    query = (
        select(JobRow)
        .where(JobRow.project_id == project, JobRow.status == "queued", JobRow.not_before <= func.now())
        .where(JobRow.model == pool.base_model, JobRow.spec["base_fingerprint"].astext == pool.base_fingerprint)
        .where(running < limit)
        .order_by(JobRow.priority.desc(), JobRow.created_at, JobRow.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=JobRow)
    )
    return await session.scalar(query.execution_options(populate_existing=True))


async def _with_files(session: ControlSession, job: JobRow) -> Claimed:
    """What was deleted since the job was created is still there: files and adapters are kept for unfinished jobs."""
    wanted = [name for name in (job.training_file, job.validation_file) if name is not None]
    query = select(FileRow).where(FileRow.project_id == job.project_id, FileRow.id.in_(wanted))
    files = {file.id: file for file in await session.scalars(query)}
    validation = files[job.validation_file] if job.validation_file else None
    start = await registry.stored_manifest(session, AdapterId(job.start_adapter)) if job.start_adapter else None
    return Claimed(job, files[job.training_file], validation, start)


async def _take(session: ControlSession, job: JobRow, worker: str, ttl_seconds: float) -> None:
    job.epoch += 1
    job.lease_owner = worker
    job.leased_at = func.clock_timestamp()
    job.lease_until = func.clock_timestamp() + timedelta(seconds=ttl_seconds)
    notes: tuple[Note, ...] = ()
    if job.started_at is None:
        job.started_at = func.clock_timestamp()
        notes = (Note("Fine-tuning job started"),)
    resumed = CheckpointManifest.model_validate(job.checkpoint) if job.checkpoint else None
    job.step = resumed.step if resumed else 0
    job.trained_tokens = resumed.trained_tokens if resumed else 0
    await lifecycle.transition(session, job, "running", *notes)


def _lease(resources: Resources, claimed: Claimed) -> Lease:
    job = claimed.job
    return Lease(
        spec=JobSpec.model_validate(job.spec),
        epoch=job.epoch,
        ttl_seconds=resources.settings.lease_ttl_seconds,
        renew_seconds=resources.settings.lease_renew_seconds,
        training_file=_file(resources, claimed.training),
        validation_file=_file(resources, claimed.validation) if claimed.validation else None,
        checkpoint=_checkpoint(resources, job),
        start_adapter=_start(resources, job, claimed.start) if claimed.start else None,
    )


def _file(resources: Resources, file: FileRow) -> FileRef:
    key = file_key(ProjectId(file.project_id), FileId(file.id))
    url = resources.store.presign_get(key, resources.settings.presign_seconds)
    return FileRef(url=url, sha256=file.sha256, size=file.bytes)


def _checkpoint(resources: Resources, job: JobRow) -> CheckpointRef | None:
    if job.checkpoint is None:
        return None
    manifest = CheckpointManifest.model_validate(job.checkpoint)
    prefix = checkpoint_prefix(ProjectId(job.project_id), JobId(job.id), manifest.epoch, manifest.step)
    seconds = resources.settings.presign_seconds
    urls = {file.path: resources.store.presign_get(prefix + file.path, seconds) for file in manifest.files}
    return CheckpointRef(manifest=manifest, urls=urls)


def _start(resources: Resources, job: JobRow, manifest: AdapterManifest) -> AdapterRef:
    prefix, seconds = (
        adapter_prefix(ProjectId(job.project_id), adapter_id_of(manifest)),
        resources.settings.presign_seconds,
    )
    urls = {file.path: resources.store.presign_get(prefix + file.path, seconds) for file in manifest.files}
    return AdapterRef(manifest=manifest, urls=urls)
