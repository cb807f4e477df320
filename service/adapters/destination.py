"""Which registered adapter may get a version of some base: asked before a job is queued, and again when it ends."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from service.adapters.aliases import is_name
from service.adapters.models import RegisteredRow
from service.contracts.ids import ProjectId
from service.errors import Conflict, InvalidRequest
from service.resources import Resources

RESERVED = frozenset({"imports", "exports"})
"""Words that stand where a name would in the paths of the API."""


def check_name(resources: Resources, name: str, param: str) -> None:
    """Raises InvalidRequest for what no registered adapter may be called."""
    if not is_name(name):
        raise InvalidRequest(
            f"'{name[:64]}' is no name of an adapter: 1 to 64 lowercase letters, digits, '.', '_' and '-', beginning "
            "with a letter or a digit, and not as ids of jobs and checkpoints do, with 'ftjob-' or 'ftckpt'.",
            code="invalid_adapter_name",
            param=param,
        )
    if name in RESERVED or resources.base_model(name) is not None:
        raise InvalidRequest(f"'{name}' is taken; give the adapter another name.", code="name_taken", param=param)


async def check(session: AsyncSession, resources: Resources, project: ProjectId, name: str, base: str) -> None:
    """Raises where a version on that base could not be added; the adapter need not exist yet."""
    check_name(resources, name, "adapter")
    query = select(RegisteredRow).where(RegisteredRow.project_id == project, RegisteredRow.name == name)
    row = await session.scalar(query.where(RegisteredRow.purged_at.is_(None)))
    if row is not None:
        refuse_unfit(row, base)


def refuse_unfit(row: RegisteredRow, base: str) -> None:
    if row.deleted_at is not None:
        raise deleted(row.name)
    if row.base_model not in (None, base):
        raise Conflict(
            f"The versions of adapter '{row.name}' are of base model '{row.base_model}', this one is of '{base}'; "
            "give it to another adapter.",
            code="base_model_mismatch",
            param="adapter",
        )


def deleted(name: str) -> Conflict:
    return Conflict(
        f"The adapter '{name}' is deleted and keeps its name until it is purged; restore it or take another name.",
        code="adapter_deleted",
        param="adapter",
    )
