"""What a version may be made from: a finished job, one of its checkpoint models, or any model of the project's own."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from service.adapters import registry
from service.adapters.models import AdapterRow, ModelRow, VersionRow
from service.adapters.removal import not_found
from service.contracts.ids import AdapterId
from service.db import TenantSession
from service.errors import Conflict, InvalidRequest, NotFound
from service.jobs import lifecycle
from service.jobs.models import JobRow
from service.registry import provenance
from service.registry.versions import Source


@dataclass(frozen=True)
class Made:
    """An artifact of the project's own, and all that is known of how it came to be."""

    source: Source
    artifact: AdapterId
    provenance: dict[str, Any]
    evaluation: dict[str, Any] | None


async def of_job(session: TenantSession, job_id: str) -> Made:
    """Raises NotFound for an unknown and a foreign job, Conflict for one that has not succeeded."""
    job = await lifecycle.find(session, job_id)
    if job.status != "succeeded":
        raise Conflict(
            f"Job '{job_id}' has status '{job.status}'; only one that has succeeded has a model.",
            code="job_not_succeeded",
            param="source.job_id",
        )
    final = select(ModelRow.adapter_id).where(ModelRow.job_id == job.id, ModelRow.kind == "final")
    artifact = AdapterId((await session.scalars(final)).one())
    return await made_by(session, job, artifact, Source("job", job.id))


async def of_checkpoint(session: TenantSession, checkpoint_id: str) -> Made:
    """Raises NotFound for an unknown, a foreign and an ended checkpoint model alike."""
    model = await session.scalar(
        select(ModelRow).where(
            ModelRow.checkpoint_id == checkpoint_id,
            ModelRow.project_id == session.project_id,
            ModelRow.deleted_at.is_(None),
        )
    )
    if model is None:
        raise NotFound(
            f"There is no checkpoint '{checkpoint_id}'.", code="checkpoint_not_found", param="source.checkpoint_id"
        )
    job = await lifecycle.find(session, model.job_id)
    found = await provenance.of_job(session, job)
    source, measured = Source("checkpoint", checkpoint_id), provenance.scores(model.metrics or {})
    return Made(source, AdapterId(model.adapter_id), found, measured or None)


async def of_model(session: TenantSession, name: str) -> Made:
    """A fine-tuned model by any of its names, also a version of another registered adapter."""
    model = await registry.find(session, session.project_id, name)
    if model is None:
        raise not_found(name)
    if model.project_id != session.project_id:
        raise InvalidRequest(
            f"The model '{name}' belongs to another project, which shares it for use only.",
            code="model_not_registrable",
            param="source.model",
        )
    source = Source("model", model.name)
    job_id = await session.scalar(select(AdapterRow.job_id).where(AdapterRow.id == model.adapter_id))
    if job_id is not None:
        return await made_by(session, await lifecycle.find(session, job_id), model.adapter_id, source)
    known = await session.scalar(
        select(VersionRow)
        .where(VersionRow.artifact_id == model.adapter_id, VersionRow.project_id == session.project_id)
        .order_by(VersionRow.created_at)
        .limit(1)
    )
    return Made(source, model.adapter_id, known.provenance if known else {}, known.evaluation if known else None)


async def made_by(session: AsyncSession, job: JobRow, artifact: AdapterId, source: Source) -> Made:
    step = await session.scalar(select(AdapterRow.step).where(AdapterRow.id == artifact))
    evaluation = await provenance.evaluation_of(session, job, step or 0)
    return Made(source, artifact, await provenance.of_job(session, job), evaluation)
