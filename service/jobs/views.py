"""Rows turned into what the public API shows."""

from service.adapters.models import ModelRow
from service.contracts.job import Hyperparameters, JobSpec
from service.contracts.worker import CheckpointMetrics
from service.jobs.draft import Draft
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
    ShownSettings,
    SupervisedMethod,
)
from service.tenants.auth import Tenant

ASKED: dict[str, str] = {"cancel": "cancelled", "pause": "pausing"}
"""What the owner of an unfinished job is told who has asked for this: nothing that a trainer does can undo a cancel."""


def job_object(tenant: Tenant, job: JobRow, outlook: Outlook) -> JobObject:
    plan = JobSpec.model_validate(job.spec) if job.spec else Draft.model_validate(job.draft)
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
        status=ASKED.get(job.want, job.status),
        phase=job.phase,
        error=JobError.model_validate(job.error) if job.error else None,
        training_file=job.training_file,
        validation_file=job.validation_file,
        result_files=job.result_files,
        trained_tokens=job.trained_tokens if job.status == "succeeded" else None,
        seed=plan.seed,
        hyperparameters=_top_level(plan),
        method=method_of(plan),
        hyperparameter_rules=plan.rules if isinstance(plan, JobSpec) else {},
        integrations=job.integrations,
        metadata=job.job_metadata or None,
        user_provided_suffix=job.suffix,
        adapter=job.adapter,
        on_success=OnSuccess.model_validate(job.on_success) if job.on_success else None,
    )


def _top_level(plan: JobSpec | Draft) -> BasicHyperparameters | NoHyperparameters:
    if plan.method != "supervised":
        return NoHyperparameters()
    chosen = plan.hyperparameters
    return BasicHyperparameters(
        n_epochs=chosen.n_epochs or "auto",
        batch_size=chosen.batch_size or "auto",
        learning_rate_multiplier=chosen.learning_rate_multiplier or "auto",
    )


def method_of(plan: JobSpec | Draft) -> SupervisedMethod | DpoMethod:
    chosen = plan.hyperparameters
    settings = ShownSettings(hyperparameters=chosen if isinstance(chosen, Hyperparameters) else chosen.shown())
    return DpoMethod(dpo=settings) if plan.method == "dpo" else SupervisedMethod(supervised=settings)


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
