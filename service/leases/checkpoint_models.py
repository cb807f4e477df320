"""Publishing adapters of a running job as models of their own. What a job resumes from is `checkpoints`'."""

from service.adapters import checkpoints, stored
from service.adapters.registry import Trained
from service.contracts.ids import JobId, ProjectId, checkpoint_model_name
from service.contracts.job import JobSpec
from service.contracts.worker import CheckpointMetrics, CheckpointModel, Control
from service.db import ControlSession
from service.errors import InvalidRequest
from service.jobs import events, names
from service.jobs.events import Note
from service.jobs.models import JobRow
from service.leases import uploads
from service.leases.hold import extend, held
from service.resources import Resources
from service.webhooks import outbox


async def register(resources: Resources, job_id: str, request: CheckpointModel) -> Control:
    """Gives a stored adapter a name under which it can be used at once. Repeating the call changes nothing.

    Raises LeaseLost where the epoch no longer holds the job, and InvalidRequest where the upload is not complete.
    """
    async with resources.database.control() as session:
        spec = JobSpec.model_validate((await held(session, job_id, request.epoch)).spec)
    _check(spec, request)
    await stored.verify_adapter(resources.store, uploads.adapter_folder(spec, request.adapter), request.adapter)
    async with resources.database.control() as session:
        job = await held(session, job_id, request.epoch)
        await _publish(session, job, request)
        return extend(job, resources)


def _check(spec: JobSpec, request: CheckpointModel) -> None:
    uploads.check_adapter(spec, request.adapter)
    if request.adapter.step != request.metrics.step:
        raise InvalidRequest(
            f"The adapter is of step {request.adapter.step}, its metrics of step {request.metrics.step}.",
            code="adapter_mismatch",
            param="metrics.step",
        )


async def _publish(session: ControlSession, job: JobRow, request: CheckpointModel) -> None:
    step = request.metrics.step
    project, job_id = ProjectId(job.project_id), JobId(job.id)
    name = checkpoint_model_name(await names.reserve(session, job), step)
    # A loss may be NaN, which the database cannot hold.
    metrics = CheckpointMetrics.model_validate(events.storable(request.metrics.model_dump()))
    trained = Trained(project, job_id, job.epoch, request.adapter)
    checkpoint_id = await checkpoints.publish(session, trained, name, metrics)
    if checkpoint_id is not None:
        data = {"id": checkpoint_id, "fine_tuning_job_id": job.id, "fine_tuned_model_checkpoint": name}
        await outbox.emit(session, project, "checkpoint.created", {**data, "step_number": step})
        await events.write(session, job, Note(f"Checkpoint created at step {step}", data={"step": step, "model": name}))
        await checkpoints.thin_out(session, project, job_id)
