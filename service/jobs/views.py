"""Rows turned into what the public API shows."""

from service.contracts.job import JobSpec
from service.jobs.models import EventRow, JobRow
from service.jobs.schemas import (
    BasicHyperparameters,
    EventObject,
    JobError,
    JobObject,
    ResolvedMethod,
    ResolvedSupervised,
)
from service.tenants.auth import Tenant


def job_object(tenant: Tenant, job: JobRow) -> JobObject:
    spec = JobSpec.model_validate(job.spec)
    chosen = spec.hyperparameters
    return JobObject(
        id=job.id,
        created_at=int(job.created_at.timestamp()),
        finished_at=int(job.finished_at.timestamp()) if job.finished_at else None,
        model=job.model,
        fine_tuned_model=job.fine_tuned_model,
        organization_id=tenant.organization_id,
        status=job.status,
        phase=job.phase,
        error=JobError.model_validate(job.error) if job.error else None,
        training_file=job.training_file,
        validation_file=job.validation_file,
        trained_tokens=job.trained_tokens if job.status == "succeeded" else None,
        seed=spec.seed,
        hyperparameters=BasicHyperparameters(
            n_epochs=chosen.n_epochs,
            batch_size=chosen.batch_size,
            learning_rate_multiplier=chosen.learning_rate_multiplier,
        ),
        method=ResolvedMethod(supervised=ResolvedSupervised(hyperparameters=chosen)),
        hyperparameter_rules=spec.rules,
        integrations=job.integrations,
        metadata=job.job_metadata or None,
        user_provided_suffix=job.suffix,
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
