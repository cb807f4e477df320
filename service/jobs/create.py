"""Creating a job: its row and the beginning of its history. What makes it a good one is decided in `plan`."""

from service.db import TenantSession
from service.jobs.events import Note
from service.jobs.graders import dumped
from service.jobs.lifecycle import transition
from service.jobs.models import JobRow
from service.jobs.plan import Plan, plan
from service.jobs.schemas import CreateJob
from service.limits.spend import require_budget
from service.resources import Resources
from service.tenants import audit


async def create(session: TenantSession, resources: Resources, request: CreateJob) -> JobRow:
    """Queues a job of the session's project. It is enqueued when the transaction commits."""
    await require_budget(session, resources.settings)
    planned = await plan(session, resources, request)
    job = _row(request, planned)
    session.add(job)
    await session.flush()
    await audit.note(session, "fine_tuning.job.created", job.id, model=job.model, training_file=job.training_file)
    await transition(session, job, "queued", *_history(job, planned))
    await session.refresh(job)
    return job


def _row(request: CreateJob, planned: Plan) -> JobRow:
    spec = planned.spec
    return JobRow(
        id=spec.job_id,
        project_id=spec.project_id,
        status="validating_files",
        model=spec.base_model,
        start_model=planned.origin.model.name if planned.origin.model else None,
        start_adapter=planned.origin.model.adapter_id if planned.origin.model else None,
        suffix=request.suffix,
        adapter=request.destination,
        on_success=dumped(request.on_success) if request.on_success else None,
        job_metadata=request.metadata or {},
        integrations=[each.recorded() for each in request.integrations or ()] or None,
        spec=spec.model_dump(mode="json"),
        training_file=request.training_file,
        validation_file=request.validation_file,
        expected_tokens=planned.expected_tokens,
    )


def _history(job: JobRow, planned: Plan) -> tuple[Note, ...]:
    files = f"training file: {job.training_file}"
    if job.validation_file is not None:
        files += f" and validation file: {job.validation_file}"
    notes = [Note(f"Created fine-tuning job: {job.id}"), Note(f"Validating {files}")]
    if job.integrations:
        notes.append(Note("Integrations are recorded only; this service sends nothing to them", "warn"))
    if planned.spec.start_from is not None and planned.spec.method == "dpo":
        told = f"Preferences are measured against {job.model}, not against {job.start_model}, where training starts"
        notes.append(Note(told, "warn"))
    return (*notes, Note("Files validated, moving job to queued state"))
