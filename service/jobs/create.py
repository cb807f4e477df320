"""Creating a job: its row and the beginning of its history. What makes it a good one is decided in `plan`.

A job whose files are still being processed is created all the same; `waiting` plans it once they are there.
"""

from service.contracts.ids import JobId, new_job_id
from service.db import TenantSession
from service.jobs import pace, quota
from service.jobs.draft import Draft, Origin, drafted
from service.jobs.events import Note, write
from service.jobs.graders import dumped
from service.jobs.lifecycle import READY, transition
from service.jobs.models import JobRow
from service.jobs.plan import Plan, Sources, completed, resolved_of, sources_of
from service.jobs.resolve import Dataset
from service.jobs.schemas import CreateJob
from service.resources import Resources
from service.tenants import audit

EXAMPLE_BYTES = 1024
"""Of an example in a file into which nobody has looked yet: a guess."""


async def create(session: TenantSession, resources: Resources, request: CreateJob) -> JobRow:
    """Queues a job of the session's project. It is enqueued when the transaction commits."""
    origin, draft = await drafted(session, resources, request)
    sources = await sources_of(session, request, draft.method)
    job = _row(session, request, origin, draft)
    if sources.being_processed():
        job.draft = draft.model_dump(mode="json")
        job.expected_tokens = await _guessed_tokens(session, resources, origin, draft, sources)
    else:
        take_up(job, await completed(session, resources, JobId(job.id), draft, origin.base, sources))
    await quota.require_room(session, resources.settings, job)
    session.add(job)
    await session.flush()
    await audit.note(session, "fine_tuning.job.created", job.id, model=job.model, training_file=job.training_file)
    await write(session, job, *_beginning(job, draft))
    if not sources.being_processed():
        await transition(session, job, "queued", READY)
    await session.refresh(job)
    return job


def take_up(job: JobRow, planned: Plan) -> None:
    """Puts the plan into the job, in place of its draft."""
    job.spec, job.draft = planned.spec.model_dump(mode="json"), None
    job.expected_tokens = planned.expected_tokens


def _row(session: TenantSession, request: CreateJob, origin: Origin, draft: Draft) -> JobRow:
    return JobRow(
        id=new_job_id(),
        project_id=session.project_id,
        status="validating_files",
        model=origin.base.name,
        start_model=draft.start_model,
        start_adapter=draft.start_from.adapter_id if draft.start_from else None,
        suffix=request.suffix,
        adapter=request.destination,
        on_success=dumped(request.on_success) if request.on_success else None,
        job_metadata=request.metadata or {},
        integrations=[each.recorded() for each in request.integrations or ()] or None,
        training_file=request.training_file,
        validation_file=request.validation_file,
    )


async def _guessed_tokens(
    session: TenantSession, resources: Resources, origin: Origin, draft: Draft, sources: Sources
) -> int:
    """From the training file's size alone. Raises InvalidRequest for what no file could make right."""
    examples = max(resources.settings.min_examples, sources.training.bytes // EXAMPLE_BYTES)
    dataset = Dataset(examples, sources.training.bytes, validated=sources.validation is not None)
    chosen = resolved_of(draft, origin.base, dataset, resources.settings.max_lora_rank).hyperparameters
    known = await pace.known(session, origin.base.name, draft.base_fingerprint)
    return pace.expected_tokens(known, sources.training.bytes, chosen.n_epochs)


def _beginning(job: JobRow, draft: Draft) -> tuple[Note, ...]:
    files = f"training file: {job.training_file}"
    if job.validation_file is not None:
        files += f" and validation file: {job.validation_file}"
    notes = [Note(f"Created fine-tuning job: {job.id}"), Note(f"Validating {files}")]
    if job.integrations:
        notes.append(Note("Integrations are recorded only; this service sends nothing to them", "warn"))
    if draft.start_from is not None and draft.method == "dpo":
        told = f"Preferences are measured against {job.model}, not against {job.start_model}, where training starts"
        notes.append(Note(told, "warn"))
    return tuple(notes)
