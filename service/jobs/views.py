"""Rows turned into what the public API shows."""

from service.adapters.models import ModelRow
from service.contracts.job import JobSpec
from service.contracts.worker import CheckpointMetrics
from service.jobs.graders import OnSuccess
from service.jobs.models import EventRow, JobRow
from service.jobs.outlook import Outlook
from service.jobs.schemas import (
    BasicHyperparameters,
    CheckpointObject,
    DpoMethod,
    EventObject,
    JobError,
    JobObject,
    NoHyperparameters,
    ResolvedSettings,
    SupervisedMethod,
)
from service.tenants.auth import Tenant


def job_object(tenant: Tenant, job: JobRow, outlook: Outlook) -> JobObject:
    spec = JobSpec.model_validate(job.spec)
    finish = outlook.estimated_finish
    return JobObject(
        id=job.id,
        created_at=int(job.created_at.timestamp()),
        finished_at=int(job.finished_at.timestamp()) if job.finished_at else None,
        estimated_finish=int(finish.timestamp()) if finish else None,
        queue_position=outlook.queue_position,
        blocked_by=outlook.blocked_by,
        model=job.start_model or job.model,
        fine_tuned_model=job.fine_tuned_model,
        organization_id=tenant.organization_id,
        status=job.status,
        phase=job.phase,
        error=JobError.model_validate(job.error) if job.error else None,
        training_file=job.training_file,
        validation_file=job.validation_file,
        result_files=job.result_files,
        trained_tokens=job.trained_tokens if job.status == "succeeded" else None,
        seed=spec.seed,
        hyperparameters=_top_level(spec),
        method=method_of(spec),
        hyperparameter_rules=spec.rules,
        integrations=job.integrations,
        metadata=job.job_metadata or None,
        user_provided_suffix=job.suffix,
        adapter=job.adapter,
        on_success=OnSuccess.model_validate(job.on_success) if job.on_success else None,
    )


def _top_level(spec: JobSpec) -> BasicHyperparameters | NoHyperparameters:
    if spec.method != "supervised":
        return NoHyperparameters()
    chosen = spec.hyperparameters
    return BasicHyperparameters(
        n_epochs=chosen.n_epochs,
        batch_size=chosen.batch_size,
        learning_rate_multiplier=chosen.learning_rate_multiplier,
    )


def method_of(spec: JobSpec) -> SupervisedMethod | DpoMethod:
    settings = ResolvedSettings(hyperparameters=spec.hyperparameters)
    return DpoMethod(dpo=settings) if spec.method == "dpo" else SupervisedMethod(supervised=settings)


def checkpoint_object(model: ModelRow) -> CheckpointObject:
    """Of a model of kind 'checkpoint', which has what the other kinds lack."""
    assert model.checkpoint_id is not None
    assert model.step is not None
    return CheckpointObject(
        id=model.checkpoint_id,
        created_at=int(model.created_at.timestamp()),
        fine_tuned_model_checkpoint=model.name,
        fine_tuning_job_id=model.job_id,
        step_number=model.step,
        metrics=CheckpointMetrics.model_validate(model.metrics),
    )


def event_object(event: EventRow) -> EventObject:
    return EventObject(
        id=event.id,
        created_at=int(event.created_at.timestamp()),
        level=event.level,
        message=event.message,
        type=event.type,
        data=event.data,
    )
