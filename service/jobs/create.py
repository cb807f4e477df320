"""Creating a job: everything a trainer could stumble over is refused here, before any GPU time is spent."""

import secrets
from typing import Literal

from sqlalchemy import select

from service.contracts.base_model import BaseModelInfo
from service.contracts.ids import new_job_id
from service.contracts.job import JobSpec
from service.db import TenantSession
from service.errors import InvalidRequest, ModelNotFound
from service.files.models import FileRow
from service.jobs.events import Note
from service.jobs.lifecycle import transition
from service.jobs.models import JobRow
from service.jobs.resolve import Dataset, resolve
from service.jobs.schemas import CreateJob, RequestedHyperparameters
from service.resources import Resources

Role = Literal["training_file", "validation_file"]


async def create(session: TenantSession, resources: Resources, request: CreateJob) -> JobRow:
    """Queues a job of the session's project. It is enqueued when the transaction commits."""
    base = _base(resources, request.model)
    requested = _requested(request)
    if request.validation_file == request.training_file:
        raise InvalidRequest(
            "The training and validation file are the same; give different files.", param="validation_file"
        )
    training = await _usable_file(session, request.training_file, "training_file")
    _refuse_few_examples(training, resources.settings.min_examples)
    if request.validation_file is not None:
        await _usable_file(session, request.validation_file, "validation_file")
    job = _row(session, request, _spec(session, request, requested, base, training))
    session.add(job)
    await session.flush()
    await transition(session, job, "queued", *_history(job))
    await session.refresh(job)
    return job


def _base(resources: Resources, name: str) -> BaseModelInfo:
    base = resources.base_model(name)
    if base is None:
        offered = ", ".join(sorted(known.name for known in resources.settings.base_models))
        raise ModelNotFound(
            f"The model '{name}' does not exist or cannot be fine-tuned. Models that can be: {offered}.", param="model"
        )
    return base


def _requested(request: CreateJob) -> RequestedHyperparameters:
    """The wanted hyperparameters, where `method` goes before the deprecated top level field by field."""
    if request.integrations:
        raise InvalidRequest(
            "Integrations are not supported by this service; read metrics from the job's events.",
            code="unsupported_integration",
            param="integrations",
        )
    method = request.method
    if method is not None and (
        method.type != "supervised" or method.dpo is not None or method.reinforcement is not None
    ):
        raise InvalidRequest(
            "This service trains with method 'supervised' only.", code="unsupported_method", param="method"
        )
    old = request.hyperparameters or RequestedHyperparameters()
    new = method.supervised.hyperparameters if method and method.supervised else RequestedHyperparameters()
    return old.model_copy(update=new.model_dump(exclude_unset=True))


async def _usable_file(session: TenantSession, file_id: str, role: Role) -> FileRow:
    """The tenant's file, held so that it cannot be deleted before the job exists."""
    own = select(FileRow).where(FileRow.id == file_id, FileRow.project_id == session.project_id, FileRow.live())
    file = await session.scalar(own.with_for_update(read=True))
    if file is None:
        raise InvalidRequest(f"There is no file '{file_id}'.", code="file_not_found", param=role)
    if file.purpose != "fine-tune":
        raise InvalidRequest(
            f"File '{file_id}' has purpose '{file.purpose}'; upload it with purpose 'fine-tune'.",
            code="invalid_file_purpose",
            param=role,
        )
    if file.status != "processed":
        reason = file.status_details or f"its status is '{file.status}'"
        raise InvalidRequest(f"File '{file_id}' cannot be used: {reason}", code=f"invalid_{role}", param=role)
    return file


def _refuse_few_examples(file: FileRow, least: int) -> None:
    if file.examples < least:
        raise InvalidRequest(
            f"Training file has {file.examples} example(s), but must have at least {least} examples",
            code="invalid_n_examples",
            param="training_file",
        )


def _spec(
    session: TenantSession,
    request: CreateJob,
    requested: RequestedHyperparameters,
    base: BaseModelInfo,
    training: FileRow,
) -> JobSpec:
    resolved = resolve(requested, base, Dataset(training.examples, training.bytes))
    return JobSpec(
        job_id=new_job_id(),
        project_id=session.project_id,
        base_model=base.name,
        base_fingerprint=base.fingerprint,
        chat_template_sha256=base.chat_template_sha256,
        seed=secrets.randbelow(2**31) if request.seed is None else request.seed,
        examples=training.examples,
        hyperparameters=resolved.hyperparameters,
        rules=resolved.rules,
    )


def _row(session: TenantSession, request: CreateJob, spec: JobSpec) -> JobRow:
    return JobRow(
        id=spec.job_id,
        project_id=session.project_id,
        status="validating_files",
        model=spec.base_model,
        suffix=request.suffix,
        job_metadata=request.metadata or {},
        spec=spec.model_dump(mode="json"),
        training_file=request.training_file,
        validation_file=request.validation_file,
    )


def _history(job: JobRow) -> tuple[Note, ...]:
    files = f"training file: {job.training_file}"
    if job.validation_file is not None:
        files += f" and validation file: {job.validation_file}"
    return (
        Note(f"Created fine-tuning job: {job.id}"),
        Note(f"Validating {files}"),
        Note("Files validated, moving job to queued state"),
    )
