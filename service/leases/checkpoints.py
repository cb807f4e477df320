"""Registering checkpoints and deleting those that no resume can need any more."""

import asyncio
import logging
import re
from collections.abc import Callable

from service.adapters import stored
from service.contracts.ids import JobId, ProjectId
from service.contracts.job import JobSpec
from service.contracts.layout import job_prefix
from service.contracts.manifest import CheckpointManifest
from service.contracts.store import ObjectStore, StoreError
from service.contracts.worker import CheckpointDone, Control
from service.leases import uploads
from service.leases.hold import extend, held
from service.resources import Resources

FOLDER = re.compile(r"e(\d+)/step-(\d+)/")

log = logging.getLogger("service.leases")


async def register(resources: Resources, job_id: str, request: CheckpointDone) -> Control:
    """Makes a complete, newer checkpoint the one to resume from. Repeating the call changes nothing.

    Raises LeaseLost where the epoch no longer holds the job, and InvalidRequest where the upload is not complete.
    """
    async with resources.database.control() as session:
        spec = JobSpec.model_validate((await held(session, job_id, request.epoch)).spec)
    uploads.check_checkpoint(spec, request.epoch, request.manifest)
    await stored.verify_checkpoint(resources.store, uploads.checkpoint_folder(spec, request.manifest), request.manifest)
    async with resources.database.control() as session:
        job = await held(session, job_id, request.epoch)
        previous = CheckpointManifest.model_validate(job.checkpoint) if job.checkpoint else None
        # A later epoch may be at an earlier step: its trainer found the older checkpoint unusable and began again.
        newer = previous is None or _order(previous) < _order(request.manifest)
        if newer:
            job.checkpoint = request.manifest.model_dump(mode="json")
            if previous is None or previous.step < request.manifest.step:
                job.lost_workers = 0
        control = extend(job, resources)
    if newer:
        await _delete_older(resources.store, spec, request.manifest, previous)
    return control


def _order(manifest: CheckpointManifest) -> tuple[int, int]:
    return manifest.epoch, manifest.step


async def delete_all(store: ObjectStore, project: ProjectId, job: JobId) -> None:
    """Deletes every checkpoint of a job that has ended."""
    await _delete(store, job_prefix(project, job), lambda _epoch, _step: True)


async def _delete_older(
    store: ObjectStore, spec: JobSpec, newest: CheckpointManifest, previous: CheckpointManifest | None
) -> None:
    """Keeps the newest and the one before. What lost epochs left beyond the newest step stays until the job ends."""
    keep = {(manifest.epoch, manifest.step) for manifest in (newest, previous) if manifest is not None}
    prefix = job_prefix(ProjectId(spec.project_id), JobId(spec.job_id))
    await _delete(store, prefix, lambda epoch, step: step < newest.step and (epoch, step) not in keep)


async def _delete(store: ObjectStore, prefix: str, outdated: Callable[[int, int], bool]) -> None:
    try:
        keys = await asyncio.to_thread(store.keys, prefix)
        found = [(key, FOLDER.match(key, len(prefix))) for key in keys]
        await asyncio.to_thread(store.delete, [key for key, at in found if at and outdated(int(at[1]), int(at[2]))])
    except StoreError as error:
        log.warning("checkpoints under %s are left behind for now: %s", prefix, error)
