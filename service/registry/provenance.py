"""Where a version comes from: the job, its resolved settings and the hashes of its data, and what the job measured."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from service.contracts.job import JobSpec
from service.contracts.worker import CheckpointMetrics
from service.files.models import FileRow
from service.jobs.models import EventRow, JobRow

SCORES = frozenset(CheckpointMetrics.model_fields)


async def of_job(session: AsyncSession, job: JobRow) -> dict[str, Any]:
    """As it stays with the version, whatever becomes of the job's files later."""
    spec = JobSpec.model_validate(job.spec)
    return {
        "job": {
            "id": job.id,
            "method": spec.method,
            "seed": spec.seed,
            "hyperparameters": spec.hyperparameters.model_dump(mode="json"),
            "hyperparameter_rules": spec.rules,
            "trained_tokens": job.trained_tokens,
            "start_model": job.start_model,
            "start_sha256": spec.start_from.adapter_id if spec.start_from else None,
        },
        "training_file": await _file(session, job, job.training_file),
        "validation_file": await _file(session, job, job.validation_file),
    }


async def evaluation_of(session: AsyncSession, job: JobRow, step: int) -> dict[str, Any] | None:
    """What the job measured at a step, in the words of its metrics; None where it told nothing of it."""
    told = EventRow.data["step"].astext == str(step)
    query = select(EventRow.data).where(EventRow.job_id == job.id, EventRow.type == "metrics", told)
    measured: dict[str, Any] = {}
    for data in await session.scalars(query.order_by(EventRow.seq)):
        measured |= scores(data)
    return measured if measured.keys() - {"step"} else None


def scores(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name in SCORES and value is not None}


async def _file(session: AsyncSession, job: JobRow, file_id: str | None) -> dict[str, Any] | None:
    query = select(FileRow).where(FileRow.id == file_id, FileRow.project_id == job.project_id)
    file = await session.scalar(query)
    if file is None:
        return None
    return {"id": file.id, "filename": file.filename, "sha256": file.sha256, "bytes": file.bytes}
