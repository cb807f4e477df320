"""How a leased job ends: state, model, results, usage and events in one transaction, guarded by the epoch.

What the trainer stored is verified before, and the results file stored; checkpoints are deleted after. A repeated call
gets the answer of the first.
"""

from sqlalchemy import select

from service.adapters import registry, stored
from service.adapters.models import ModelRow
from service.adapters.removal import sweep
from service.contracts.ids import FileId, JobId, ProjectId
from service.contracts.job import TERMINAL, JobSpec
from service.contracts.manifest import AdapterManifest, adapter_id_of
from service.contracts.worker import Finish, Finished, JobFailure
from service.db import ControlSession
from service.errors import InvalidRequest, LeaseLost
from service.files import reservation
from service.jobs import events, lifecycle, names, results
from service.jobs.events import Note
from service.jobs.models import JobRow
from service.leases import checkpoints, uploads
from service.leases.hold import meter
from service.registry import registration
from service.resources import Resources
from service.usage.ledger import UsageEntry, record, training_id

ENDS = {
    "succeeded": {"succeeded", "cancelled"},
    "failed": {"failed", "cancelled"},
    "cancelled": {"cancelled"},
    "paused": {"paused", "queued", "cancelled"},
    "released": {"queued", "paused", "cancelled"},
}
"""Where each outcome may have led, since what the owner asked for goes before what the trainer reports."""


async def finish(resources: Resources, job_id: str, request: Finish) -> Finished:
    """Raises LeaseLost where the epoch no longer holds the job and did not end it this way either.

    Raises InvalidRequest where a success comes without a complete adapter of this job that can be served.
    """
    _check_shape(request)
    async with resources.database.control() as session:
        job, known = await _look(session, job_id, request)
    if known is not None:
        return known
    spec = JobSpec.model_validate(job.spec)
    results_file: FileId | None = None
    if request.adapter is not None:
        uploads.check_adapter(spec, request.adapter)
        await stored.verify_adapter(resources.store, uploads.adapter_folder(spec, request.adapter), request.adapter)
        results_file = await results.store(resources, spec, request.events)
    async with resources.database.control() as session:
        finished = await commit_finish(session, job_id, request, results_file)
    await _clean_up(resources, spec, finished)
    return finished


async def commit_finish(session: ControlSession, job_id: str, request: Finish, results_file: FileId | None) -> Finished:
    """The transaction's content. The adapter has been verified, and the results of a success are stored."""
    job, known = await _look(session, job_id, request)
    if known is not None:
        return known
    job.step = max(job.step, request.step)
    await events.merge(session, job, request.events)
    await meter(session, job, request.trained_tokens)
    if job.want == "cancel":
        await lifecycle.transition(session, job, "cancelled", lifecycle.CANCELLED)
    else:
        await _apply(session, job, request, results_file)
    return _answer(job)


async def _clean_up(resources: Resources, spec: JobSpec, finished: Finished) -> None:
    """What no resume and no model needs any more. A crash before this leaves objects behind and nothing else."""
    if finished.status in TERMINAL:
        await checkpoints.delete_all(resources.store, ProjectId(spec.project_id), JobId(spec.job_id))
        await sweep(resources, JobId(spec.job_id))


async def _apply(session: ControlSession, job: JobRow, request: Finish, results_file: FileId | None) -> None:
    match request.outcome, job.want:
        case "succeeded", _:
            assert request.adapter is not None
            assert results_file is not None
            await _succeed(session, job, request.adapter, results_file)
        case "failed", _:
            failure = request.failure or JobFailure(code="unknown", message="The job failed.")
            message, param = events.storable(failure.message), events.storable(failure.param)
            await lifecycle.fail(session, job, events.storable(failure.code), message, param)
        case "cancelled", _:
            await lifecycle.transition(session, job, "cancelled", lifecycle.CANCELLED)
        case _, "pause":
            await lifecycle.transition(session, job, "paused", lifecycle.PAUSED)
        case _:
            # Released, or paused although the owner has taken the pause back: the job goes on elsewhere.
            note = Note("The worker handed the job back, moving job to queued state")
            await lifecycle.transition(session, job, "queued", note)


async def _succeed(session: ControlSession, job: JobRow, adapter: AdapterManifest, results_file: FileId) -> None:
    name = job.fine_tuned_model = await names.reserve(session, job)
    trained = registry.Trained(ProjectId(job.project_id), JobId(job.id), job.epoch, adapter)
    await registry.publish(session, trained, name)
    await reservation.publish(session, results_file)
    job.result_files = [results_file]
    usage = UsageEntry(
        id=training_id(job.id, job.epoch),
        project_id=job.project_id,
        kind="training",
        model=job.model,
        trained_tokens=job.trained_tokens,
    )
    await record(session, [usage])
    versions = await registration.register(session, job, adapter_id_of(adapter))
    created, done = Note(f"New fine-tuned model created: {name}"), Note("The job has successfully completed")
    await lifecycle.transition(session, job, "succeeded", created, *versions, done)


async def _look(session: ControlSession, job_id: str, request: Finish) -> tuple[JobRow, Finished | None]:
    """The job, locked, and the answer that an earlier call of the same epoch got; None for a job that still runs."""
    job = await lifecycle.lock(session, job_id)
    if job is None or job.epoch != request.epoch:
        raise LeaseLost
    if job.status == "running":
        return job, None
    if job.status not in ENDS[request.outcome]:
        raise LeaseLost
    if job.status == "succeeded" and request.adapter is not None:
        final = select(ModelRow.adapter_id).where(ModelRow.job_id == job.id, ModelRow.kind == "final")
        published = await session.scalar(final)
        if published != adapter_id_of(request.adapter):
            raise LeaseLost
    return job, _answer(job)


def _answer(job: JobRow) -> Finished:
    return Finished(status=job.status, fine_tuned_model=job.fine_tuned_model)


def _check_shape(request: Finish) -> None:
    if (request.outcome == "succeeded") != (request.adapter is not None):
        raise InvalidRequest("A success comes with its adapter's manifest, and nothing else does.", param="adapter")
    if (request.outcome == "failed") != (request.failure is not None):
        raise InvalidRequest("A failure comes with its reason, and nothing else does.", param="failure")
