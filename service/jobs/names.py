"""The public name of a job's models, in OpenAI's shape. Chosen once, by whichever of them is published first."""

from sqlalchemy import exists, select, update
from sqlalchemy.exc import IntegrityError

from service.adapters.models import ModelRow
from service.contracts.ids import fine_tuned_model_name
from service.db import ControlSession
from service.jobs.models import JobRow
from service.tenants.models import OrganizationRow, ProjectRow

ATTEMPTS = 5


async def reserve(session: ControlSession, job: JobRow) -> str:
    """The name of a locked job's final model, also where that is still to come or never will."""
    if job.model_name is not None:
        return job.model_name
    organization = await session.scalar(
        select(OrganizationRow.name)
        .join(ProjectRow, ProjectRow.organization_id == OrganizationRow.id)
        .where(ProjectRow.id == job.project_id)
    )
    for _ in range(ATTEMPTS):
        name = fine_tuned_model_name(job.model, organization or "", job.suffix)
        if await _take(session, job, name):
            await session.refresh(job, ["model_name"])
            return name
    raise RuntimeError(f"no free model name for {job.id} in {ATTEMPTS} attempts")


async def _take(session: ControlSession, job: JobRow, name: str) -> bool:
    # Models of before names were reserved stand in their own table alone.
    published = exists().where(ModelRow.name == name)
    taken = update(JobRow).where(JobRow.id == job.id, ~published).values(model_name=name)
    try:
        async with session.begin_nested():
            statement = taken.returning(JobRow.id).execution_options(synchronize_session=False)
            return await session.scalar(statement) is not None
    except IntegrityError:
        return False
